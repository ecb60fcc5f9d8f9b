// What can be done, each behind a question.

import { read, send } from '/ui/api.js';
import { el, text } from '/ui/dom.js';

const MERGE = 'application/merge-patch+json';
const STRATEGIC = 'application/strategic-merge-patch+json';
const MOST = 1000;

/** Asks, and does it if the answer is yes. Gives what was done, as a sentence, or null. */
function confirm({ title, more, extra, word, danger, act }) {
  const dialog = document.getElementById('ask');
  const yes = el('button', { type: 'submit', class: danger ? 'danger' : 'main' }, word);
  const no = el('button', { type: 'button' }, 'Cancel');
  const error = el('p', { class: 'error', role: 'alert', hidden: true });
  const form = el('form', {}, el('h2', { id: 'ask-title' }, title), more ? el('p', { class: 'soft' }, more) : null,
    extra, error, el('div', { class: 'buttons' }, no, yes));
  dialog.replaceChildren(form);
  return new Promise((resolve) => {
    let done = null;
    no.onclick = () => dialog.close();
    dialog.onclose = () => resolve(done);
    form.onsubmit = async (event) => {
      event.preventDefault();
      yes.disabled = true;
      try {
        done = await act();
        dialog.close();
      } catch (failure) {
        text(error, failure.message);
        error.hidden = false;
        yes.disabled = false;
      }
    };
    dialog.showModal();
    (extra?.querySelector('input') ?? no).focus();
  });
}

const setPath = (namespace, name) =>
  `/apis/apps/v1/namespaces/${encodeURIComponent(namespace)}/statefulsets/${encodeURIComponent(name)}`;

export function scale(namespace, one) {
  const input = el('input', { type: 'number', min: 0, max: MOST, step: 1, value: one.replicas, required: true });
  return confirm({
    title: `Scale ${one.name}`,
    more: 'Pods that are no longer wanted stop from the top ordinal. Their data stays unless the set says otherwise.',
    extra: el('label', {}, 'Pods', input),
    word: 'Scale',
    act: async () => {
      const replicas = input.valueAsNumber;
      await send(`${setPath(namespace, one.name)}/scale`, { method: 'PATCH', type: MERGE, body: { spec: { replicas } } });
      return `${one.name} gets ${replicas} pods`;
    },
  });
}

export function restart(namespace, one) {
  return confirm({
    title: `Restart ${one.name}?`,
    more: 'All its pods are replaced, from the top ordinal, each once the one before is Ready again.',
    word: 'Restart',
    act: async () => {
      const annotations = { 'kubectl.kubernetes.io/restartedAt': new Date().toISOString() };
      const body = { spec: { template: { metadata: { annotations } } } };
      await send(setPath(namespace, one.name), { method: 'PATCH', type: STRATEGIC, body });
      return `the pods of ${one.name} are replaced`;
    },
  });
}

export function undo(namespace, one) {
  return confirm({
    title: `Return ${one.name} to revision ${one.undo.number}?`,
    more: 'Its template becomes the earlier one, and pods that have another are replaced.',
    word: 'Undo',
    act: async () => {
      const revisions = `/apis/apps/v1/namespaces/${encodeURIComponent(namespace)}/controllerrevisions`;
      const { data } = await read(`${revisions}/${encodeURIComponent(one.undo.name)}`);
      await send(setPath(namespace, one.name), { method: 'PATCH', type: STRATEGIC, body: data });
      return `${one.name} returns to revision ${one.undo.number}`;
    },
  });
}

export function stop(namespace, row) {
  return confirm({
    title: `Stop ${row.pod}?`,
    more: 'It is stopped within its grace period. Where its set wants it, it is made anew, with its name and its data.',
    word: 'Stop',
    danger: true,
    act: async () => {
      const path = `/api/v1/namespaces/${encodeURIComponent(namespace)}/pods/${encodeURIComponent(row.pod)}`;
      // This pod, and no other that has taken its name since.
      const body = { kind: 'DeleteOptions', apiVersion: 'v1', preconditions: { uid: row.uid } };
      await send(path, { method: 'DELETE', type: 'application/json', body });
      return `${row.pod} is being stopped`;
    },
  });
}
