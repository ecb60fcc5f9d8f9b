"""What a program with the Python client (PyPI: kubernetes) does, against the instance that KUBECONFIG names."""

import socket
import threading
import time

from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException
from kubernetes.dynamic import DynamicClient
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock
from kubernetes.stream import portforward, stream

NAMESPACE = "python"
SECONDS = 60  # for anything to happen; reached only by failures


def refused(status, reason, call):
    """The call is refused with that code and reason; its message."""
    try:
        call()
    except ApiException as error:
        body = client.ApiClient().deserialize(error.body, "object", "application/json")
        assert (error.status, body["kind"], body["reason"]) == (status, "Status", reason), body
        return body["message"]
    raise AssertionError(f"not refused: {status} {reason}")


def config_map(name, data, **metadata):
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name, **metadata), data=data)


def objects_live(core):
    """Create, read, replace, every kind of patch, and delete; with the errors that clients tell apart."""
    made = core.create_namespaced_config_map(NAMESPACE, config_map("one", {"a": "1"}, labels={"of": "life"}))
    assert made.metadata.uid and made.metadata.creation_timestamp.tzinfo is not None
    stale = core.read_namespaced_config_map("one", NAMESPACE)
    made.data["b"] = "2"
    core.replace_namespaced_config_map("one", NAMESPACE, made)
    message = refused(409, "Conflict", lambda: core.replace_namespaced_config_map("one", NAMESPACE, stale))
    assert "the object has been modified" in message, message
    patch = core.patch_namespaced_config_map
    patch("one", NAMESPACE, {"data": {"a": None, "c": "3"}})
    patch("one", NAMESPACE, {"data": {"d": "4"}}, _content_type="application/merge-patch+json")
    patch("one", NAMESPACE, [{"op": "replace", "path": "/data/d", "value": "5"}], _content_type="application/json-patch+json")
    assert core.read_namespaced_config_map("one", NAMESPACE).data == {"b": "2", "c": "3", "d": "5"}
    refused(409, "AlreadyExists", lambda: core.create_namespaced_config_map(NAMESPACE, config_map("one", {})))
    message = refused(422, "Invalid", lambda: core.create_namespaced_config_map(NAMESPACE, config_map("No!", {})))
    assert "metadata.name" in message, message
    core.create_namespaced_config_map(NAMESPACE, config_map("dry", {}), dry_run="All")
    refused(404, "NotFound", lambda: core.read_namespaced_config_map("dry", NAMESPACE))
    core.delete_namespaced_config_map("one", NAMESPACE)
    refused(404, "NotFound", lambda: core.read_namespaced_config_map("one", NAMESPACE))


def apply_owns_fields(api):
    """Server-side apply through the dynamic client: fields have owners, and a conflict names them."""
    dynamic = DynamicClient(api)
    maps = dynamic.resources.get(api_version="v1", kind="ConfigMap")

    def apply(manager, data, **options):
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": data}
        return maps.server_side_apply(body, namespace=NAMESPACE, field_manager=manager, **options)

    apply("first", {"a": "1", "b": "1"})
    assert "first" in refused(409, "Conflict", lambda: apply("second", {"a": "2"}))
    apply("second", {"a": "2"}, force_conflicts=True)
    result = apply("first", {"b": "3"})
    assert result.data.to_dict() == {"a": "2", "b": "3"}, result.data


def lists_page_and_watches_follow(core):
    """A list in pages by label, and a watch that goes on where the list ended."""
    for n in range(5):
        core.create_namespaced_config_map(NAMESPACE, config_map(f"page-{n}", {}, labels={"of": "pages"}))
    names, token = [], None
    while token != "":
        page = core.list_namespaced_config_map(NAMESPACE, label_selector="of=pages", limit=2, _continue=token)
        names += [item.metadata.name for item in page.items]
        token = page.metadata._continue or ""
    assert names == [f"page-{n}" for n in range(5)], names
    revision = page.metadata.resource_version
    core.delete_collection_namespaced_config_map(NAMESPACE, label_selector="of=pages")
    watching, gone = watch.Watch(), set()
    follow = watching.stream(core.list_namespaced_config_map, NAMESPACE, label_selector="of=pages",
                             resource_version=revision, timeout_seconds=SECONDS)
    for event in follow:
        assert event["type"] == "DELETED", event
        gone.add(event["object"].metadata.name)
        if len(gone) == 5:
            watching.stop()
    assert gone == set(names), gone
    refused(400, "BadRequest", lambda: core.list_namespaced_config_map(NAMESPACE, limit=1, _continue="bm90aGluZw"))


def pod(name, script):
    container = client.V1Container(name="main", image="host", command=["/bin/sh", "-c", script])
    spec = client.V1PodSpec(runtime_class_name="host", containers=[container], termination_grace_period_seconds=0)
    return client.V1Pod(metadata=client.V1ObjectMeta(name=name), spec=spec)


def streams_flow(core):
    """Logs, exec in both directions, and a forwarded port."""
    serve = "echo first; echo second; exec /usr/bin/python3 -m http.server 8000"
    core.create_namespaced_pod("default", pod("python-streams", serve))
    watching = watch.Watch()
    for event in watching.stream(core.list_namespaced_pod, "default", timeout_seconds=SECONDS,
                                 field_selector="metadata.name=python-streams"):
        if event["object"].status.phase == "Running":
            watching.stop()
    lines = watch.Watch().stream(core.read_namespaced_pod_log, "python-streams", "default")
    assert next(lines) == "first"
    assert core.read_namespaced_pod_log("python-streams", "default", tail_lines=2).startswith("first\nsecond")

    run = dict(name="python-streams", namespace="default", stdout=True, stderr=True, tty=False)
    output = stream(core.connect_get_namespaced_pod_exec, command=["/bin/echo", "hello"], stdin=False, **run)
    assert output == "hello\n", output
    shell = stream(core.connect_get_namespaced_pod_exec, command=["/bin/sh"], stdin=True, _preload_content=False, **run)
    shell.write_stdin("echo to-out; echo to-err >&2; exit 7\n")
    shell.run_forever(timeout=SECONDS)
    assert (shell.read_stdout(), shell.read_stderr(), shell.returncode) == ("to-out\n", "to-err\n", 7)
    refused_exec = dict(run, name="no-such-pod")
    try:
        stream(core.connect_get_namespaced_pod_exec, command=["true"], stdin=False, **refused_exec)
        raise AssertionError("exec into nothing")
    except ApiException as error:
        assert "404" in error.reason, error

    answer = eventually("the forwarded port answers", lambda: fetch(core))
    assert answer.startswith(b"HTTP/1.0 200"), answer
    core.delete_namespaced_pod("python-streams", "default", grace_period_seconds=0)


def fetch(core):
    forward = portforward(core.connect_get_namespaced_pod_portforward, "python-streams", "default", ports="8000")
    port = forward.socket(8000)
    port.settimeout(SECONDS)
    answer = b""
    try:
        port.sendall(b"GET / HTTP/1.0\r\n\r\n")
        while chunk := port.recv(4096):
            answer += chunk
    except (BrokenPipeError, ConnectionResetError):
        # Closed before it was written to: nobody listens yet.
        return None
    # A server that does not listen yet is told on the error channel.
    return answer if forward.error(8000) is None else None


def eventually(what, look):
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {SECONDS} s: {what}")


def sets_scale(apps):
    """A StatefulSet through its own API group, and its scale subresource."""
    template = pod("unused", "exec sleep 100000")
    labels = {"app": "python-set"}
    template = client.V1PodTemplateSpec(metadata=client.V1ObjectMeta(labels=labels), spec=template.spec)
    spec = client.V1StatefulSetSpec(service_name="", replicas=1, template=template,
                                    selector=client.V1LabelSelector(match_labels=labels))
    body = client.V1StatefulSet(metadata=client.V1ObjectMeta(name="python-set"), spec=spec)
    apps.create_namespaced_stateful_set("default", body)
    apps.patch_namespaced_stateful_set_scale("python-set", "default", {"spec": {"replicas": 2}})

    def ready():
        status = apps.read_namespaced_stateful_set_status("python-set", "default").status
        return status.ready_replicas == 2 and status

    assert eventually("both are ready", ready).replicas == 2
    assert apps.read_namespaced_stateful_set_scale("python-set", "default").status.replicas == 2
    apps.delete_namespaced_stateful_set("python-set", "default", propagation_policy="Foreground")
    eventually("it is gone", lambda: not apps.list_namespaced_stateful_set(
        "default", field_selector="metadata.name=python-set").items)


def one_candidate_leads():
    """The client's own leader election, on a Lease: of two candidates one leads, and holds it."""
    leads = threading.Event()

    def candidate(name, on_lead):
        lock = LeaseLock("elected", NAMESPACE, name)
        settings = electionconfig.Config(lock, lease_duration=15, renew_deadline=10, retry_period=1,
                                         onstarted_leading=on_lead, onstopped_leading=lambda: None)
        threading.Thread(target=leaderelection.LeaderElection(settings).run, daemon=True).start()

    candidate("a", leads.set)
    assert leads.wait(SECONDS)
    candidate("b", lambda: leads.clear())
    leases = client.CoordinationV1Api()
    first = leases.read_namespaced_lease("elected", NAMESPACE)
    renewed = eventually("the leader renews", lambda: next(
        (lease for lease in [leases.read_namespaced_lease("elected", NAMESPACE)]
         if lease.metadata.resource_version != first.metadata.resource_version), None))
    assert renewed.spec.holder_identity == "a" and leads.is_set()


def custom_objects_are_objects(api):
    """A kind of the user's own, through the untyped API."""
    definitions, custom = client.ApiextensionsV1Api(api), client.CustomObjectsApi(api)
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "size": {"type": "integer", "minimum": 1, "default": 3}}}}}
    definitions.create_custom_resource_definition({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "toys.python.example"},
        "spec": {"group": "python.example", "scope": "Namespaced", "names": {"plural": "toys", "kind": "Toy"},
                 "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}]}})

    def established():
        status = definitions.read_custom_resource_definition("toys.python.example").status
        return any(c.type == "Established" and c.status == "True" for c in status.conditions or [])

    eventually("the kind is there", established)
    of = ("python.example", "v1", NAMESPACE, "toys")
    toy = {"apiVersion": "python.example/v1", "kind": "Toy", "metadata": {"name": "ball"}, "spec": {}}
    assert custom.create_namespaced_custom_object(*of, toy)["spec"] == {"size": 3}
    patch = {"spec": {"size": 5}}
    assert custom.patch_namespaced_custom_object(*of, "ball", patch, _content_type="application/merge-patch+json")["spec"]["size"] == 5
    toy = dict(toy, metadata={"name": "bad"}, spec={"size": 0})
    refused(422, "Invalid", lambda: custom.create_namespaced_custom_object(*of, toy))
    assert [item["metadata"]["name"] for item in custom.list_namespaced_custom_object(*of)["items"]] == ["ball"]
    custom.delete_namespaced_custom_object(*of, "ball")
    definitions.delete_custom_resource_definition("toys.python.example")


def main():
    config.load_kube_config()
    socket.setdefaulttimeout(SECONDS)
    api, core = client.ApiClient(), client.CoreV1Api()
    assert client.VersionApi().get_code().major == "1"
    groups = {group.name for group in client.ApisApi().get_api_versions().groups}
    assert {"apps", "coordination.k8s.io", "rbac.authorization.k8s.io"} <= groups, groups
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=NAMESPACE)))
    may = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(
        resource_attributes=client.V1ResourceAttributes(verb="create", resource="pods")))
    assert client.AuthorizationV1Api().create_self_subject_access_review(may).status.allowed
    objects_live(core)
    apply_owns_fields(api)
    lists_page_and_watches_follow(core)
    streams_flow(core)
    sets_scale(client.AppsV1Api())
    one_candidate_leads()
    if "apiextensions.k8s.io" in groups:
        custom_objects_are_objects(api)
    core.delete_namespace(NAMESPACE)
    print("all is well")


main()
