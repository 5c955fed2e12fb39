"""``pidone render``: prints the plan of a pod, rendered by the code that the controller uses."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

from pidone.cli.files import STANDARD_INPUT, parse_file, read_bytes, yaml_files
from pidone.cli.output import complain, escaped, unreadable
from pidone.errors import LanguageError, PidoneError
from pidone.language.binding import collect, derive
from pidone.language.checking import check_files
from pidone.language.findings import shown, suggestion
from pidone.language.model import TaskBinding, TaskSet
from pidone.language.params import from_text, mismatch
from pidone.language.pods import pod_facts, read_pods
from pidone.language.rendering import render
from pidone.language.resolution import heirs
from pidone.language.secrets import NO_SECRETS, GivenSecrets, Secrets, ShownSecrets
from pidone.language.selector import matches
from pidone.plan.format import encode_bundle
from pidone.plan.mask import MASK, masked_tasks
from pidone.plan.model import Phase

EXAMPLE_ADDRESS = "192.0.2.1"  # reserved for documentation (RFC 5737)

Objects = Mapping[str, Sequence[TaskSet | TaskBinding]]  # by file


@dataclass(frozen=True, slots=True)
class DeskPod:
    """A pod from a file: of the cluster, or a manifest that was not applied."""

    manifest: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Raise ``LanguageError`` if a field has another type than in Kubernetes."""
        for part in ("metadata", "spec", "status"):
            _expect_object(part, self.manifest.get(part))
        for part in ("labels", "annotations"):
            values = (self.manifest.get("metadata") or {}).get(part)
            _expect_object(f"metadata.{part}", values)
            for key, value in (values or {}).items():
                if not isinstance(value, str):
                    message = f'{part} of the Pod: "{key}" is {shown(value)}, and not text; quote it'
                    raise LanguageError(message)

    @property
    def name(self) -> str:
        return pod_facts(self.manifest).name

    @property
    def uid(self) -> str:
        return pod_facts(self.manifest).uid

    @property
    def namespace(self) -> str:
        return pod_facts(self.manifest).namespace

    @property
    def labels(self) -> Mapping[str, str]:
        labels: Mapping[str, str] = (self.manifest.get("metadata") or {}).get("labels") or {}
        return labels

    def with_facts(self, ip: str) -> "DeskPod":
        """Return the pod with facts of a running pod where its file has none: ``ip``, and made-up uid and node."""
        pod = self.manifest
        status = {"podIP": ip, "podIPs": [{"ip": ip}]} | (pod.get("status") or {})
        metadata = {"name": "pod", "namespace": "default", "uid": f"uid-of-{self.name}"} | (
            pod.get("metadata") or {}
        )
        spec = {"nodeName": "node"} | (pod.get("spec") or {})
        return DeskPod({**pod, "metadata": metadata, "spec": spec, "status": status})

    def __str__(self) -> str:
        return f"pod {self.namespace}/{self.name}"


def _expect_object(part: str, value: object) -> None:
    if value is not None and not isinstance(value, Mapping):
        raise LanguageError(f"{part} of the Pod: expected an object, not {shown(value)}")


def render_files(paths: Sequence[str], pod_file: str, arguments: Mapping[str, str], output: str) -> int:
    """Print the bundle as ``json`` or ``yaml``, or its ``digest``.

    Exit code 0, 1 for mistakes in the files, 2 for a file that cannot be read.
    """
    try:
        original = read_pod(pod_file, paths)
        pod = original.with_facts(EXAMPLE_ADDRESS)
        objects = read_objects(paths)
        secrets = ShownSecrets(MASK)
        bundle = bundle_for(pod, objects, param_values(objects, arguments), secrets)
        bundle["tasks"] = masked_tasks(bundle["tasks"])
    except OSError as error:
        return unreadable("render", error)
    except PidoneError as error:
        complain(error)
        return 1

    if not bundle["tasks"]:
        complain(f"the plan has no tasks: {why_no_tasks(pod, objects)}")
    if pod_facts(original.manifest).ip != bundle["pod"]["ip"]:
        complain(f"{pod} has no address yet; the plan contains {EXAMPLE_ADDRESS} instead")

    match output:
        case "digest":
            print(bundle["digest"])
        case "yaml":
            print(_yaml(bundle))
        case _:
            print(escaped(json.dumps(bundle, indent=2, ensure_ascii=False)))
    return 0


def read_objects(paths: Sequence[str]) -> Objects:
    """Return the objects of files and folders by file. Raises ``LanguageError`` with all findings, and ``OSError``."""
    parsed = {file: parse_file(file) for path in paths for file in yaml_files(path)}
    checked = dict(zip(parsed, check_files(list(parsed.values())), strict=True))
    findings = [str(finding) for file in checked.values() for finding in file.findings]
    if findings:
        raise LanguageError("\n".join(findings))

    objects = {name: file.objects for name, file in checked.items()}
    if not any(isinstance(item, TaskSet) for items in objects.values() for item in items):
        raise LanguageError(f"{', '.join(paths)}: there is no TaskSet in it")
    return objects


def task_sets(objects: Objects) -> list[TaskSet]:
    """Return the sets that no other set extends, merged with the sets they extend. Raises ``LanguageError``."""
    return heirs([item for items in objects.values() for item in items if isinstance(item, TaskSet)])


def read_pod(file: str, others: Sequence[str]) -> DeskPod:
    """Return the pod of a file that contains exactly one. Raises ``LanguageError`` and ``OSError``.

    ``others`` are the paths of the TaskSets; only one of all can be the standard input.
    """
    if file == STANDARD_INPUT and STANDARD_INPUT in others:
        raise LanguageError(
            "the standard input can be read once: as the pod or as the TaskSets; write one to a file"
        )
    try:
        pods = [DeskPod(pod) for pod in read_pods(read_bytes(file))]
    except LanguageError as error:
        raise LanguageError(f"{file}: {error}") from error
    if len(pods) != 1:
        names = ", ".join(str(pod).removeprefix("pod ") for pod in pods[:5]) or "an empty List"
        raise LanguageError(
            f"{file}: expected one pod, not {len(pods)} ({names}); kubectl get pod NAME -o yaml prints one"
        )
    return pods[0]


def param_values(objects: Objects, arguments: Mapping[str, str]) -> dict[str, Any]:
    """Convert NAME=VALUE of the command line to the types of the params. Raises ``LanguageError``."""
    params = {param.name: param for task_set in task_sets(objects) for param in task_set.params}
    values = {}
    for name, text in arguments.items():
        if name not in params:
            hint = suggestion(name, sorted(params))
            raise LanguageError(f'--param {name}: no TaskSet here has a param "{name}"{hint}')
        values[name] = from_text(params[name], text)
        if problem := mismatch(params[name], values[name]):
            given = "the value" if params[name].confidential else shown(text)
            raise LanguageError(f"--param {name}: {given} {problem}")
    return values


def bundle_for(
    pod: DeskPod, objects: Objects, values: Mapping[str, Any], secrets: Secrets = NO_SECRETS
) -> dict[str, Any]:
    """Return the bundle that the repo would serve to ``pod``. Raises ``PidoneError`` that names the pod.

    If the objects contain TaskBindings, the pod's labels select the sets, as in a cluster. Otherwise the pod gets all
    TaskSets. ``values`` are for params: with TaskBindings only for those from Secrets and files, else for all.
    """
    items = [item for items in objects.values() for item in items]
    with_bindings = any(isinstance(item, TaskBinding) for item in items)
    params = [param for item in items if isinstance(item, TaskSet) for param in item.params]
    confidential = {param.name for param in params if param.confidential}
    secrets = GivenSecrets({name: values[name] for name in values.keys() & confidential}, secrets)
    values = {name: value for name, value in values.items() if name not in confidential}
    if with_bindings and values:
        raise LanguageError(
            f'param "{min(values)}": the TaskBindings in the files set the params; '
            "change it there, or leave out the TaskBindings"
        )
    try:
        tasks = (
            _bound_tasks(pod, objects, secrets)
            if with_bindings
            else render(task_sets(objects), values, pod.manifest, secrets)
        )
    except PidoneError as error:
        raise LanguageError(f"{pod}: {error}") from error
    return encode_bundle(tasks, phase=Phase.RUNNING, pod=pod_facts(pod.manifest))


def why_no_tasks(pod: DeskPod, objects: Objects) -> str:
    """Return why a pod gets no tasks of these objects, and what to do."""
    labels = ", ".join(f"{key}={value}" for key, value in sorted(pod.labels.items())) or "none"
    bindings = [item for items in objects.values() for item in items if isinstance(item, TaskBinding)]
    selecting = [binding for binding in bindings if matches(binding.pod_selector, pod.labels)]
    elsewhere = [one for one in selecting if one.namespace and one.namespace != pod.namespace]
    if not bindings or len(elsewhere) < len(selecting):
        return f"the podSelector of each task excludes {pod}, whose labels are: {labels}"
    if elsewhere:
        names = ", ".join(f"{one.namespace}/{one.name}" for one in elsewhere[:3])
        return f"{pod} is not in the namespace of {names}; give it the namespace"
    remedy = "give it labels that one selects, or leave out the TaskBindings"
    return f"no TaskBinding selects {pod}, whose labels are: {labels}; {remedy}"


def _bound_tasks(pod: DeskPod, objects: Objects, secrets: Secrets) -> list[dict[str, Any]]:
    rules, complaints = collect(objects.items())
    if complaints:
        raise LanguageError("\n".join(complaints))
    return derive(pod, replace(rules, secrets=secrets))


def _yaml(bundle: Mapping[str, Any]) -> str:
    from ruamel.yaml import YAML

    text = StringIO()
    writer: Any = YAML(typ="safe", pure=True)  # its attributes are typed as None
    writer.default_flow_style = False
    writer.allow_unicode = escaped(json_text := json.dumps(bundle, ensure_ascii=False)) == json_text
    writer.sort_base_mapping_type_on_output = False
    writer.dump(bundle, text)
    return text.getvalue().rstrip()
