// One pod: what it is, what it waits for, what happened to it, and what it prints.

import { lines, read, Refused, send } from '/ui/api.js';
import { el, list, set, text } from '/ui/dom.js';
import { room, tell, why } from '/ui/sets.js';
import { ago, bytes, processors, states } from '/ui/words.js';

const LINES = 2000;
const TAIL = 200;

/** The panel beside the sets. */
export class Detail {
  constructor(node, on) {
    this.node = node;
    this.pod = null;
    this.name = el('h2', { id: 'detail-name' });
    this.stop = el('button', { type: 'button', onclick: () => on.stop(this.row) }, 'Stop pod');
    const close = el('button', { type: 'button', 'aria-label': 'Close details', onclick: () => on.close() }, 'Close');
    this.facts = el('dl');
    this.why = why();
    this.events = el('ul', { class: 'events' });
    this.nothing = el('p', { class: 'soft' }, 'Nothing that is still kept.');
    this.container = el('select', { 'aria-label': 'Container', onchange: () => this.openLog() });
    this.log = el('pre', { class: 'log', tabindex: 0, role: 'log', 'aria-live': 'off', 'aria-label': 'Log' });
    const head = el('div', { class: 'log-head' }, el('h3', {}, 'Log'), this.container);
    const body = el('div', { class: 'body' }, this.why, this.facts,
      el('section', {}, el('h3', {}, 'Events'), this.events, this.nothing), el('section', {}, head, this.log));
    node.append(el('div', { class: 'head' }, this.name, el('div', { class: 'acts' }, this.stop, close)), body);
  }

  /** Shows a pod, or no more. */
  open(namespace, pod) {
    this.namespace = namespace;
    this.pod = pod;
    this.uid = undefined;
    this.node.hidden = !pod;
    this.reading?.abort();
    this.log.replaceChildren();
    this.container.replaceChildren();
  }

  /** Takes the newest state of the pod. */
  async update(overview) {
    if (!this.pod) return;
    const rows = [...overview.sets.flatMap((one) => one.rows), ...overview.pods];
    const row = rows.find((one) => one.pod === this.pod);
    if (!row) {
      this.open(this.namespace, null);
      return;
    }
    this.row = row;
    text(this.name, row.pod);
    this.stop.disabled = !row.uid || row.state === 'stopping';
    this.why.hidden = !row.waiting;
    if (row.waiting) tell(this.why, row.waiting);
    const facts = [
      ['State', states[row.state]], ['Node', row.node], ['Address', row.ip], ['Revision', row.revision],
      ['Made by', row.owner], ['Age', row.created && ago(row.created)], ['Restarts', row.uid && String(row.restarts)],
      ['CPU', row.cpuMillis === undefined ? '' : processors(row.cpuMillis)],
      ['Memory', row.memoryBytes === undefined ? '' : bytes(row.memoryBytes)],
      ...row.volumes.map((volume) => [volume.claim, room(volume)]),
    ].filter(([, value]) => value);
    list(this.facts, facts.flatMap(([word, value]) => [['dt', word, word], ['dd', word, value]]),
      ([kind, word]) => `${kind} ${word}`, ([kind]) => el(kind), (node, [, , value]) => text(node, value));
    if (row.uid !== this.uid) {
      this.uid = row.uid;
      this.container.replaceChildren(...row.containers.map((name) => el('option', {}, name)));
      const main = row.containers.at(-1);
      if (main) this.container.value = main;
      this.container.hidden = row.containers.length < 2;
      this.openLog();
    }
    await this.readEvents();
  }

  async readEvents() {
    const { pod, namespace } = this;
    const query = new URLSearchParams({ fieldSelector: `involvedObject.kind=Pod,involvedObject.name=${pod}` });
    const path = `/api/v1/namespaces/${encodeURIComponent(namespace)}/events?${query}`;
    const { items } = await read(path).catch((error) => {
      if (error instanceof Refused) return { items: [] };
      throw error;
    });
    if (pod !== this.pod) return;
    const when = (event) => event.series?.lastObservedTime ?? event.lastTimestamp ?? event.eventTime ?? event.metadata.creationTimestamp;
    const newest = items.sort((a, b) => Date.parse(when(b)) - Date.parse(when(a))).slice(0, 30);
    this.nothing.hidden = newest.length > 0;
    list(this.events, newest, (event) => event.metadata.uid, () => el('li', {}, el('span'), el('span'), el('span', { class: 'soft' })),
      (node, event) => {
        const count = event.series?.count ?? event.count ?? 1;
        set(node.children[0], 'class', event.type === 'Warning' ? 'warning' : null);
        text(node.children[0], event.reason);
        text(node.children[1], ` ${event.message ?? ''}`);
        text(node.children[2], ` ${ago(when(event))} ago${count > 1 ? `, ${count} times` : ''}`);
      });
  }

  /** Prints the log, and goes on as it grows. */
  async openLog() {
    this.reading?.abort();
    const reading = new AbortController();
    this.reading = reading;
    this.log.replaceChildren();
    if (!this.uid) {
      text(this.log, 'The pod is not there.');
      return;
    }
    const query = new URLSearchParams({ container: this.container.value, follow: 'true', tailLines: String(TAIL) });
    const pod = `/api/v1/namespaces/${encodeURIComponent(this.namespace)}/pods/${encodeURIComponent(this.pod)}`;
    try {
      const response = await send(`${pod}/log?${query}`, { accept: 'text/plain,*/*', signal: reading.signal });
      for await (const line of lines(response)) {
        const atEnd = this.log.scrollTop + this.log.clientHeight >= this.log.scrollHeight - 20;
        this.log.append(`${line}\n`);
        while (this.log.childNodes.length > LINES) this.log.firstChild.remove();
        if (atEnd) this.log.scrollTop = this.log.scrollHeight;
      }
    } catch (error) {
      if (!reading.signal.aborted) this.log.append(`(${error.message})\n`);
    }
  }
}
