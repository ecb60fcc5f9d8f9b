// The API, as whoever has signed in: every request carries their token, and nothing else.

const KEY = 'statefuld.session';
let session = JSON.parse(sessionStorage.getItem(KEY) ?? 'null');

/** The server wants to know who asks. */
export class SignedOut extends Error {}

/** A refusal, in the server's words. */
export class Refused extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

export const user = () => session?.user ?? '';
export const signedIn = () => session !== null;

function keep(next) {
  session = next;
  if (next) sessionStorage.setItem(KEY, JSON.stringify(next));
  else sessionStorage.removeItem(KEY);
}

/** A request; the response, if it is a good one. */
export async function send(path, { method = 'GET', type, body, accept, signal } = {}) {
  const headers = { Accept: accept ?? 'application/json' };
  if (session) headers.Authorization = `Bearer ${session.token}`;
  if (type) headers['Content-Type'] = type;
  const content = typeof body === 'string' || body === undefined ? body : JSON.stringify(body);
  // No cookies and no client certificates: the token alone says who asks.
  const response = await fetch(path, {
    method, headers, body: content, signal, cache: 'no-store', credentials: 'omit', redirect: 'error',
  });
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  const message = said.message ?? `${response.status} ${response.statusText}`;
  if (response.status === 401 || (response.status === 403 && !session)) {
    keep(null);
    throw new SignedOut(message);
  }
  throw new Refused(response.status, message);
}

/** A document. */
export const read = async (path, options) => (await send(path, options)).json();

/** Trades the ticket in the page's address for a session. It is good once, so it is taken out of the address at once. */
export async function redeem() {
  const ticket = new URLSearchParams(location.hash.slice(1)).get('ticket');
  if (!ticket) return;
  history.replaceState(null, '', location.pathname + location.search);
  keep(null);
  const answer = await send('/statefuld/v1/sessions', { method: 'POST', type: 'application/json', body: { ticket } });
  const { token, user: name } = await answer.json();
  keep({ token, user: name, ours: true });
}

/** Acts with a token that a person has from elsewhere, once the server knows it. */
export async function useToken(token) {
  keep({ token, user: '', ours: false });
  await whoami();
}

/** Asks whom the server takes us for. */
export async function whoami() {
  const review = await read('/apis/authentication.k8s.io/v1/selfsubjectreviews', {
    method: 'POST', type: 'application/json',
    body: { apiVersion: 'authentication.k8s.io/v1', kind: 'SelfSubjectReview' },
  });
  const name = review.status.userInfo.username;
  if (session) keep({ ...session, user: name });
  return name;
}

/** Ends the session, at the server too. */
export async function signOut() {
  try {
    if (session?.ours) await send('/statefuld/v1/sessions', { method: 'DELETE' });
  } finally {
    keep(null);
  }
}

/** Calls `changed` whenever something of a collection changes, until the signal ends it. */
export async function follow(path, changed, signal) {
  const accept = 'application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json';
  for (let pause = 500; !signal.aborted; pause = Math.min(pause * 2, 15000)) {
    try {
      const list = accept.replace('PartialObjectMetadata', 'PartialObjectMetadataList');
      const { metadata } = await read(`${path}?limit=1`, { accept: list, signal });
      const query = `watch=true&allowWatchBookmarks=true&resourceVersion=${metadata.resourceVersion}`;
      const response = await send(`${path}?${query}`, { accept, signal });
      pause = 250;
      changed();
      for await (const line of lines(response)) if (!line.startsWith('{"type":"BOOKMARK"')) changed();
    } catch (error) {
      if (signal.aborted || error instanceof SignedOut) return;
      // What may not be followed is looked at now and then all the same.
      if (error instanceof Refused && error.code === 403) return;
    }
    await new Promise((done) => setTimeout(done, pause));
  }
}

/** The lines of a response, as they come. */
export async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const parts = (rest + value).split('\n');
    rest = parts.pop();
    yield* parts;
  }
  if (rest) yield rest;
}
