// The sets and their pods, kept up to date in place: what has the focus keeps it.

import { el, list, set, text } from '/ui/dom.js';
import { ago, bytes, processors, states } from '/ui/words.js';

const COLUMNS = [
  ['Pod', ''], ['State', ''], ['Volume', ''], ['Node', 'less'], ['Revision', 'less'],
  ['CPU', 'number less'], ['Memory', 'number less'], ['Restarts', 'number least'], ['Age', 'number least'],
];

/** Brings `main` to what the overview says. `on` has what buttons do. */
export function show(main, overview, open, on) {
  const sections = overview.sets.map((one) => ({ key: `set/${one.name}`, set: one, rows: one.rows, name: one.name }));
  if (overview.pods.length) sections.push({ key: 'pods', rows: overview.pods, name: 'Other pods' });
  list(main, sections, (section) => section.key, (section) => sectionOf(section, on), (node, section) => {
    update(node, section, open, on);
  });
  main.empty ??= el('p', { class: 'empty' });
  text(main.empty, `There are no StatefulSets and no pods in namespace ${overview.namespace}.`);
  if (sections.length) main.empty.remove();
  else main.append(main.empty);
  main.rest ??= el('section', { class: 'set says', 'aria-label': 'What else waits' });
  list(main.rest, overview.waiting, (waits) => waits.sentence, () => why(), (node, waits) => tell(node, waits));
  if (overview.waiting.length) main.append(main.rest);
  else main.rest.remove();
}

function sectionOf(section, on) {
  const id = `h-${section.key.replace('/', '-')}`;
  const parts = {
    name: el('h2', { id }), count: el('span', { class: 'count' }), ladder: el('span', { class: 'ladder', 'aria-hidden': 'true' }),
    bar: el('progress', { max: 1, value: 0 }), rollout: el('span'), waiting: el('div'),
    table: el('table', {}, el('thead', {}, el('tr', {}, ...COLUMNS.map(([word, cls]) => el('th', { scope: 'col', class: cls }, word))))),
  };
  const button = (word, act) => el('button', { type: 'button', onclick: () => act(parts.now) }, word,
    el('span', { class: 'unseen' }, ` ${section.name}`));
  const acts = el('div', { class: 'acts' });
  if (section.set) {
    parts.undo = button('Undo', on.undo);
    acts.append(button('Scale', on.scale), button('Restart', on.restart), parts.undo);
  }
  parts.progress = el('p', { class: 'says rollout' }, parts.bar, parts.rollout);
  parts.bar.setAttribute('aria-label', `Rollout of ${section.name}`);
  parts.notes = el('div', { class: 'says' }, parts.waiting);
  const head = el('div', { class: 'head' }, parts.name, parts.ladder, parts.count, acts);
  const node = el('section', { class: 'set', 'aria-labelledby': id }, head, parts.progress, parts.notes, parts.table);
  node.content = parts;
  return node;
}

function update(node, section, open, on) {
  const parts = node.content;
  const one = section.set;
  parts.now = one;
  text(parts.name, section.name);
  list(parts.ladder, section.rows, (row) => row.pod, () => el('i'), (step, row) => {
    set(step, 'data-state', row.state);
    set(step, 'data-outdated', row.outdated ?? false);
  });
  const pods = section.rows.length === 1 ? 'pod' : 'pods';
  text(parts.count, one ? `${one.ready} of ${one.replicas} Ready` : `${section.rows.length} ${pods}`);
  parts.progress.hidden = !one?.rollout.says;
  if (one) {
    text(parts.rollout, one.rollout.says ?? '');
    set(parts.bar, 'max', Math.max(1, one.replicas));
    set(parts.bar, 'value', one.rollout.done);
    parts.undo.disabled = !one.undo;
  }
  const waiting = one?.waiting ?? [];
  parts.notes.hidden = waiting.length === 0;
  list(parts.waiting, waiting, (waits) => waits.sentence, () => why(), (line, waits) => tell(line, waits));
  list(parts.table, [{ pod: '' }, ...section.rows], (row) => row.pod, (row) => (row.pod ? body(on) : parts.table.tHead),
    (rows, row) => row.pod && fill(rows, row, one, open));
}

/** The rows of one pod: what it is, and what it waits for. */
function body(on) {
  const parts = {
    pod: el('button', { type: 'button', class: 'pod', onclick: () => on.open(node.row) }),
    tag: el('span', { class: 'tag' }), state: el('span', { class: 'state' }), volume: el('div', { class: 'fill' }),
    meter: el('meter', { min: 0, max: 100, low: 80, high: 95, optimum: 0 }), used: el('span'),
    node: el('td', { class: 'less soft' }), revision: el('td', { class: 'less mono soft' }), cpu: el('td', { class: 'number less' }),
    memory: el('td', { class: 'number less' }), restarts: el('td', { class: 'number least' }), age: el('td', { class: 'number least soft' }),
    why: why(),
  };
  parts.volume.append(parts.meter, parts.used);
  parts.line = el('tr', { hidden: true }, el('td', { class: 'waiting', colspan: COLUMNS.length }, parts.why));
  const cells = [el('td', {}, parts.pod, parts.tag), el('td', {}, parts.state), el('td', {}, parts.volume),
    parts.node, parts.revision, parts.cpu, parts.memory, parts.restarts, parts.age];
  const node = el('tbody', {}, el('tr', {}, ...cells), parts.line);
  node.content = parts;
  return node;
}

function fill(node, row, owner, open) {
  const parts = node.content;
  node.row = row;
  node.owner = owner;
  set(node, 'class', `${row.waiting ? 'waits' : ''} ${row.surplus ? 'surplus' : ''}`.trim() || null);
  set(node, 'aria-current', row.pod === open ? 'true' : null);
  set(parts.pod, 'data-pod', row.pod);
  text(parts.pod, row.pod);
  const tag = row.surplus ? 'not wanted' : row.outdated ? 'older revision' : row.owner ?? '';
  text(parts.tag, tag);
  parts.tag.hidden = !tag;
  set(parts.state, 'data-state', row.state);
  text(parts.state, states[row.state]);
  const fullest = [...row.volumes].sort((a, b) => (b.percent ?? -1) - (a.percent ?? -1))[0];
  parts.volume.hidden = !fullest;
  if (fullest) {
    parts.meter.hidden = fullest.percent === undefined;
    set(parts.meter, 'value', Math.min(100, fullest.percent ?? 0));
    set(parts.meter, 'aria-label', `${fullest.claim} is ${fullest.percent ?? 0} percent full`);
    text(parts.used, room(fullest));
    set(parts.volume, 'title', row.volumes.map((volume) => `${volume.claim}: ${room(volume)}`).join('\n'));
  }
  text(parts.node, row.node ?? '');
  text(parts.revision, row.revision ?? '');
  text(parts.cpu, row.cpuMillis === undefined ? '' : processors(row.cpuMillis));
  text(parts.memory, row.memoryBytes === undefined ? '' : bytes(row.memoryBytes));
  text(parts.restarts, row.uid ? String(row.restarts) : '');
  text(parts.age, row.created ? ago(row.created) : '');
  parts.line.hidden = !row.waiting;
  set(parts.why, 'data-state', row.state);
  if (row.waiting) tell(parts.why, row.waiting);
}

/** What a volume holds of what. */
export function room({ usedBytes, promisedBytes }) {
  const of = promisedBytes === undefined ? '' : bytes(promisedBytes);
  if (usedBytes === undefined) return of;
  return of ? `${bytes(usedBytes)} of ${of}` : bytes(usedBytes);
}

/** The place of a sentence that says why something waits. */
export function why() {
  const node = el('div', { class: 'why' }, el('p'), el('ul', { class: 'unblock' }));
  return node;
}

/** Puts a sentence there. */
export function tell(node, waiting) {
  text(node.firstChild, waiting.sentence);
  list(node.lastChild, waiting.unblock ?? [], (remedy) => remedy, () => el('li'), (line, remedy) => {
    text(line, `To unblock: ${remedy}`);
  });
  node.lastChild.hidden = !waiting.unblock?.length;
}
