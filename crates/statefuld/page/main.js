// The page: signs in, follows one namespace, and shows it.

import * as acts from '/ui/acts.js';
import * as api from '/ui/api.js';
import { Detail } from '/ui/detail.js';
import { el, text } from '/ui/dom.js';
import { show } from '/ui/sets.js';

/** No two looks are closer than this; changes that come between are seen by the next. */
const PAUSE = 600;
/** What nobody tells (how full volumes are, how long something has waited) is asked for this often while somebody looks. */
const OFTEN = 10000;

const at = (id) => document.getElementById(id);
const main = at('sets');
let namespace = new URLSearchParams(location.search).get('namespace') ?? 'default';
let following = new AbortController();
let overview = null;
let before = new Map();

const on = {
  open: (row) => open(row.pod),
  close: () => open(null),
  scale: (one) => act(acts.scale, one),
  restart: (one) => act(acts.restart, one),
  undo: (one) => act(acts.undo, one),
  stop: (row) => act(acts.stop, row),
};
const detail = new Detail(at('detail'), on);

async function act(what, subject) {
  const back = document.activeElement;
  const done = await what(namespace, subject);
  if (back?.isConnected) back.focus();
  if (done) say(done);
  look();
}

function open(pod) {
  const was = detail.pod;
  detail.open(namespace, pod === was ? null : pod);
  if (overview) {
    show(main, overview, detail.pod, on);
    detail.update(overview).catch(lost);
  }
  if (!detail.pod && was) buttonOf(was)?.focus();
}

const buttonOf = (pod) => [...main.querySelectorAll('button.pod')].find((button) => button.dataset.pod === pod);

/** For those who listen. */
function say(sentence) {
  at('said').textContent = sentence;
}

function state(word, sentence) {
  at('live').dataset.state = word;
  text(at('live'), sentence);
}

let timer = null;
let last = 0;
/** Looks soon. */
function look() {
  timer ??= setTimeout(async () => {
    timer = null;
    last = performance.now();
    await refresh().catch(lost);
  }, Math.max(0, last + PAUSE - performance.now()));
}

async function refresh() {
  const asked = namespace;
  const next = await api.read(`/statefuld/v1/overview?${new URLSearchParams({ namespace: asked })}`);
  if (asked !== namespace) return;
  overview = next;
  show(main, overview, detail.pod, on);
  state('live', 'Live');
  tellChanges();
  await detail.update(overview);
}

/** Says how many pods of a set are Ready, where that has changed. */
function tellChanges() {
  const now = new Map(overview.sets.map((one) => [one.name, `${one.name}: ${one.ready} of ${one.replicas} Ready`]));
  const news = [...now].filter(([name, sentence]) => before.has(name) && before.get(name) !== sentence);
  if (news.length) say(news.map(([, sentence]) => sentence).join('. '));
  before = now;
}

function lost(error) {
  if (error instanceof api.SignedOut) signIn(error.message);
  else state('lost', error instanceof api.Refused ? error.message : 'The server does not answer');
}

function start() {
  following.abort();
  following = new AbortController();
  const { signal } = following;
  overview = null;
  before = new Map();
  detail.open(namespace, null);
  state('', 'Connecting');
  at('out').hidden = !api.signedIn();
  const space = encodeURIComponent(namespace);
  const kinds = [`/apis/apps/v1/namespaces/${space}/statefulsets`, `/api/v1/namespaces/${space}/pods`, `/api/v1/namespaces/${space}/events`];
  for (const path of kinds) api.follow(path, look, signal);
  // Asked again where the answer got lost.
  let known = false;
  const who = () => known || api.whoami().then((user) => {
    known = true;
    text(at('user'), user);
  }).catch(lost);
  const often = setInterval(() => {
    if (document.visibilityState !== 'visible') return;
    who();
    look();
  }, OFTEN);
  signal.addEventListener('abort', () => clearInterval(often));
  who();
  api.read('/api/v1/namespaces').then(({ items }) => {
    at('namespaces').replaceChildren(...items.map((one) => el('option', { value: one.metadata.name })));
  }).catch(() => {});
  look();
}

/** Asks who is there. */
function signIn(why) {
  following.abort();
  detail.open(namespace, null);
  state('', 'Not signed in');
  text(at('user'), '');
  at('out').hidden = true;
  const token = el('input', { type: 'password', autocomplete: 'off', required: true, 'aria-label': 'Token', placeholder: 'Token' });
  const error = el('p', { class: 'error', role: 'alert' }, why && why !== 'Unauthorized' ? why : '');
  const form = el('form', {
    onsubmit: async (event) => {
      event.preventDefault();
      try {
        await api.useToken(token.value.trim());
        begin();
      } catch (failure) {
        text(error, failure instanceof api.SignedOut ? 'The server does not know this token.' : failure.message);
      }
    },
  }, token, el('button', { type: 'submit', class: 'main' }, 'Sign in'));
  main.parts = undefined;
  main.replaceChildren(el('section', { class: 'sign-in', 'aria-labelledby': 'sign-in-title' },
    el('h2', { id: 'sign-in-title' }, 'Sign in'),
    el('p', {}, 'On the machine, or wherever your kubeconfig is, run'),
    el('pre', {}, 'statefuld page'),
    el('p', {}, 'and open the address that it prints. It is good once, for five minutes. A bearer token works as well:'),
    form, error));
}

function begin() {
  main.parts = undefined;
  main.replaceChildren();
  start();
}

async function enter() {
  try {
    await api.redeem();
    begin();
  } catch (error) {
    signIn(error instanceof api.SignedOut ? 'This address has been used already, or is too old.' : error.message);
  }
}

at('out').onclick = async () => {
  await api.signOut().catch(() => {});
  signIn('');
};
at('namespace').value = namespace;
at('namespace').onchange = () => {
  namespace = at('namespace').value.trim() || 'default';
  history.replaceState(null, '', `?${new URLSearchParams({ namespace })}`);
  begin();
};
window.addEventListener('hashchange', () => location.hash.includes('ticket=') && enter());
document.addEventListener('visibilitychange', () => document.visibilityState === 'visible' && api.signedIn() && look());

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || at('ask').open) return;
  if (event.key === 'Escape' && detail.pod) {
    on.close();
    event.preventDefault();
    return;
  }
  const button = event.target.closest?.('button.pod');
  if (!button) return;
  const all = [...main.querySelectorAll('button.pod')];
  const { row, owner } = button.closest('tbody');
  const keys = {
    ArrowDown: () => all[all.indexOf(button) + 1]?.focus(),
    ArrowUp: () => all[all.indexOf(button) - 1]?.focus(),
    Home: () => all[0].focus(),
    End: () => all.at(-1).focus(),
    s: () => owner && on.scale(owner),
    r: () => owner && on.restart(owner),
    u: () => owner?.undo && on.undo(owner),
    d: () => row.uid && on.stop(row),
  };
  const does = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (does) {
    event.preventDefault();
    does();
  }
});

enter();
