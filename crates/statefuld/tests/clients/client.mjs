// What a program with the JavaScript client (npm: @kubernetes/client-node) does, against the instance that
// KUBECONFIG names. NODE_MODULES names the folder that the client is installed in.

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { PassThrough } from 'node:stream';
import { pathToFileURL } from 'node:url';

const installed = createRequire(`${process.env.NODE_MODULES}/`).resolve('@kubernetes/client-node');
const k8s = await import(pathToFileURL(installed));

const namespace = 'javascript';
const SECONDS = 60; // for anything to happen; reached only by failures
const { MergePatch, JsonPatch, StrategicMergePatch, ServerSideApply } = k8s.PatchStrategy;

const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);
const apps = config.makeApiClient(k8s.AppsV1Api);
const leases = config.makeApiClient(k8s.CoordinationV1Api);

/** The call is refused with that code and reason; its message. */
async function refused(code, reason, call) {
    const error = await call().then(() => null, (error) => error);
    assert.ok(error instanceof k8s.ApiException, `not refused: ${code} ${reason}, but ${error}`);
    const status = JSON.parse(error.body);
    assert.deepEqual([error.code, status.kind, status.reason], [code, 'Status', reason], error.body);
    return status.message;
}

/** Looks again until there is something. */
async function eventually(what, look) {
    for (const end = Date.now() + SECONDS * 1000; Date.now() < end; await new Promise((r) => setTimeout(r, 100))) {
        const found = await look();
        if (found) return found;
    }
    throw new Error(`not within ${SECONDS} s: ${what}`);
}

/** Everything that a stream gives until the text fits. */
function until(stream, fits) {
    return new Promise((resolve, reject) => {
        let text = '';
        const timer = setTimeout(() => reject(new Error(`only ${JSON.stringify(text)} came`)), SECONDS * 1000);
        stream.on('data', (data) => {
            text += data;
            if (fits(text)) {
                clearTimeout(timer);
                resolve(text);
            }
        });
    });
}

const patch = (name, body, how, more = {}) =>
    core.patchNamespacedConfigMap({ name, namespace, body, ...more }, k8s.setHeaderOptions('Content-Type', how));

async function objectsLive() {
    const create = (name, data) => core.createNamespacedConfigMap({ namespace, body: { metadata: { name }, data } });
    const made = await create('one', { a: '1' });
    assert.ok(made.metadata.uid && made.metadata.creationTimestamp instanceof Date);
    const stale = structuredClone(made);
    await core.replaceNamespacedConfigMap({ name: 'one', namespace, body: { ...made, data: { a: '1', b: '2' } } });
    const conflict = () => core.replaceNamespacedConfigMap({ name: 'one', namespace, body: stale });
    assert.match(await refused(409, 'Conflict', conflict), /the object has been modified/);
    await patch('one', { data: { a: null, c: '3' } }, StrategicMergePatch);
    await patch('one', { data: { d: '4' } }, MergePatch);
    await patch('one', [{ op: 'replace', path: '/data/d', value: '5' }], JsonPatch);
    assert.deepEqual((await core.readNamespacedConfigMap({ name: 'one', namespace })).data, { b: '2', c: '3', d: '5' });
    await refused(409, 'AlreadyExists', () => create('one', {}));
    assert.match(await refused(422, 'Invalid', () => create('No!', {})), /metadata.name/);
    await core.deleteNamespacedConfigMap({ name: 'one', namespace });
    await refused(404, 'NotFound', () => core.readNamespacedConfigMap({ name: 'one', namespace }));
}

async function applyOwnsFields() {
    const apply = (fieldManager, data, force) => {
        const body = { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'applied' }, data };
        return patch('applied', body, ServerSideApply, { fieldManager, force });
    };
    await apply('first', { a: '1', b: '1' });
    assert.match(await refused(409, 'Conflict', () => apply('second', { a: '2' })), /first/);
    await apply('second', { a: '2' }, true);
    assert.deepEqual((await apply('first', { b: '3' })).data, { a: '2', b: '3' });
}

/** The untyped API: reads discovery, then any kind. */
async function anyKindGoes() {
    const objects = k8s.KubernetesObjectApi.makeApiClient(config);
    const spec = { apiVersion: 'v1', kind: 'Secret', metadata: { name: 'any', namespace }, stringData: { a: 'b' } };
    await objects.create(spec);
    assert.equal((await objects.read(spec)).data.a, 'Yg==');
    assert.ok((await objects.list('v1', 'Secret', namespace)).items.some((item) => item.metadata.name === 'any'));
    await objects.delete(spec);
}

async function anInformerFollows() {
    const path = `/api/v1/namespaces/${namespace}/configmaps`;
    const labelSelector = 'of=informer';
    const list = () => core.listNamespacedConfigMap({ namespace, labelSelector });
    const informer = k8s.makeInformer(config, path, list, labelSelector);
    const seen = [];
    for (const event of ['add', 'update', 'delete']) {
        informer.on(event, (object) => seen.push(`${event} ${object.metadata.name} ${object.data?.n}`));
    }
    informer.on('error', (error) => seen.push(`error ${error}`));
    await informer.start();
    const metadata = { name: 'followed', labels: { of: 'informer' } };
    await core.createNamespacedConfigMap({ namespace, body: { metadata, data: { n: '1' } } });
    await patch('followed', { data: { n: '2' } }, MergePatch);
    await core.deleteNamespacedConfigMap({ name: 'followed', namespace });
    await eventually('three events', () => seen.length >= 3);
    await informer.stop();
    assert.deepEqual(seen, ['add followed 1', 'update followed 2', 'delete followed 2']);
}

async function streamsFlow() {
    const name = 'javascript-streams';
    const script = 'echo first; echo second; exec /usr/bin/python3 -m http.server 8000';
    const container = { name: 'main', image: 'host', command: ['/bin/sh', '-c', script] };
    const spec = { runtimeClassName: 'host', terminationGracePeriodSeconds: 0, containers: [container] };
    await core.createNamespacedPod({ namespace: 'default', body: { metadata: { name }, spec } });
    const running = async () => (await core.readNamespacedPod({ name, namespace: 'default' })).status.phase === 'Running';
    await eventually('the pod runs', running);

    const log = new PassThrough();
    await new k8s.Log(config).log('default', name, 'main', log, { follow: true });
    await until(log, (text) => text.startsWith('first\nsecond\n'));

    const [stdin, stdout, stderr] = [new PassThrough(), new PassThrough(), new PassThrough()];
    const printed = Promise.all([until(stdout, (t) => t === 'to-out\n'), until(stderr, (t) => t === 'to-err\n')]);
    const ended = new Promise((resolve) => {
        new k8s.Exec(config).exec('default', name, 'main', ['/bin/sh'], stdout, stderr, stdin, false, resolve);
    });
    stdin.write('echo to-out; echo to-err >&2; exit 7\n');
    const status = await ended;
    await printed;
    assert.deepEqual([status.status, status.details.causes[0].message], ['Failure', '7']);

    const answer = await eventually('the forwarded port answers', async () => {
        const [output, error, input] = [new PassThrough(), new PassThrough(), new PassThrough()];
        const came = Promise.race([until(output, (t) => t.includes('\r\n\r\n')), until(error, (t) => t).then(() => null)]);
        const socket = await new k8s.PortForward(config).portForward('default', name, [8000], output, error, input);
        input.write('GET / HTTP/1.0\r\n\r\n');
        const text = await came;
        socket.close();
        return text;
    });
    assert.match(answer, /^HTTP\/1.0 200/);
    await core.deleteNamespacedPod({ name, namespace: 'default', gracePeriodSeconds: 0 });
}

async function setsScale() {
    const name = 'javascript-set';
    const labels = { app: name };
    const container = { name: 'main', image: 'host', command: ['/bin/sleep', '100000'] };
    const template = {
        metadata: { labels },
        spec: { runtimeClassName: 'host', terminationGracePeriodSeconds: 0, containers: [container] },
    };
    const spec = { serviceName: '', replicas: 1, selector: { matchLabels: labels }, template };
    await apps.createNamespacedStatefulSet({ namespace: 'default', body: { metadata: { name }, spec } });
    const scale = await apps.readNamespacedStatefulSetScale({ name, namespace: 'default' });
    scale.spec.replicas = 2;
    delete scale.metadata.resourceVersion; // the controller may have written the status meanwhile
    await apps.replaceNamespacedStatefulSetScale({ name, namespace: 'default', body: scale });
    await eventually('both are ready', async () => {
        const set = await apps.readNamespacedStatefulSetStatus({ name, namespace: 'default' });
        return set.status.readyReplicas === 2;
    });
    await apps.deleteNamespacedStatefulSet({ name, namespace: 'default', propagationPolicy: 'Foreground' });
    const fieldSelector = `metadata.name=${name}`;
    const left = () => apps.listNamespacedStatefulSet({ namespace: 'default', fieldSelector });
    await eventually('it is gone', async () => (await left()).items.length === 0);
}

/** Two candidates renew one lease by turns: whoever builds on an old version is refused. */
async function oneCandidateLeads() {
    const lease = (holderIdentity) => ({
        metadata: { name: 'elected' },
        spec: { holderIdentity, leaseDurationSeconds: 15, renewTime: new k8s.V1MicroTime() },
    });
    const taken = await leases.createNamespacedLease({ namespace, body: lease('a') });
    await refused(409, 'AlreadyExists', () => leases.createNamespacedLease({ namespace, body: lease('b') }));
    const renewed = { ...taken, spec: { ...taken.spec, renewTime: new k8s.V1MicroTime() } };
    await leases.replaceNamespacedLease({ name: 'elected', namespace, body: renewed });
    const late = { ...taken, spec: { ...taken.spec, holderIdentity: 'b' } };
    await refused(409, 'Conflict', () => leases.replaceNamespacedLease({ name: 'elected', namespace, body: late }));
}

/** A kind of the user's own, through the untyped API. */
async function customObjectsAreObjects() {
    const definitions = config.makeApiClient(k8s.ApiextensionsV1Api);
    const custom = config.makeApiClient(k8s.CustomObjectsApi);
    const size = { type: 'integer', minimum: 1, _default: 3 };
    const openAPIV3Schema = { type: 'object', properties: { spec: { type: 'object', properties: { size } } } };
    const name = 'toys.javascript.example';
    const versions = [{ name: 'v1', served: true, storage: true, schema: { openAPIV3Schema } }];
    const names = { plural: 'toys', kind: 'Toy' };
    const spec = { group: 'javascript.example', scope: 'Namespaced', names, versions };
    await definitions.createCustomResourceDefinition({ body: { metadata: { name }, spec } });
    await eventually('the kind is there', async () => {
        const { status } = await definitions.readCustomResourceDefinition({ name });
        return status?.conditions?.some((c) => c.type === 'Established' && c.status === 'True');
    });
    const of = { group: 'javascript.example', version: 'v1', namespace, plural: 'toys' };
    const toy = (name, spec) => ({ apiVersion: 'javascript.example/v1', kind: 'Toy', metadata: { name }, spec });
    const create = (body) => custom.createNamespacedCustomObject({ ...of, body });
    assert.deepEqual((await create(toy('ball', {}))).spec, { size: 3 });
    await refused(422, 'Invalid', () => create(toy('bad', { size: 0 })));
    assert.deepEqual((await custom.listNamespacedCustomObject(of)).items.map((item) => item.metadata.name), ['ball']);
    await definitions.deleteCustomResourceDefinition({ name });
}

const groups = (await config.makeApiClient(k8s.ApisApi).getAPIVersions()).groups.map((group) => group.name);
assert.ok(groups.includes('apps'));
await core.createNamespace({ body: { metadata: { name: namespace } } });
await objectsLive();
await applyOwnsFields();
await anyKindGoes();
await anInformerFollows();
await streamsFlow();
await setsScale();
await oneCandidateLeads();
if (groups.includes('apiextensions.k8s.io')) await customObjectsAreObjects();
await core.deleteNamespace({ name: namespace });
console.log('all is well');
process.exit(0);
