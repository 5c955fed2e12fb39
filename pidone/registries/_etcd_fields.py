"""The fields of ``register: etcd``: which instance they describe, and what nobody could find."""

from math import ceil

from pidone.errors import Refused
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries._etcd_layouts import FREE, LAYOUTS, Instance
from pidone.registries._etcd_layouts import problem as layout_problem
from pidone.registries._keys import part_problem
from pidone.registries._keys import problem as key_problem

MIN_TTL, MAX_TTL = 2, 86400  # seconds; a shorter lease is granted as one of 2 s


def instance_of(fields: Fields, pod: Pod) -> tuple[str, Instance]:
    """Read the layout and the instance. Raises ``Refused``."""
    path = fields.path
    layout = fields.text("layout", FREE)
    if layout not in LAYOUTS:
        raise Refused(f"{path}.layout: expected one of {', '.join(filter(None, LAYOUTS))}")
    _check_fields(layout, fields)
    port: int | None = fields.integer("port", None, least=1, most=65535)
    instance = Instance(
        address=pod.ip,
        port=port or 0,
        pod=pod.name,
        ttl=ceil(fields.seconds("ttl", 30.0, least=MIN_TTL, most=MAX_TTL)),
        service=fields.text("service", ""),
        domain=fields.text("domain", ""),
        id=fields.text("instanceId", ""),
        prefix=fields.text("prefix", ""),
        scheme=fields.text("scheme", "http"),
        version=fields.text("version", "latest"),
        metadata=fields.table("metadata"),
        key=fields.text("key", ""),
        value=fields.text("value", ""),
    )
    _check_values(layout, instance, path)
    return layout, instance


def _check_fields(layout: str, fields: Fields) -> None:
    """Raise ``Refused`` if the layout needs other fields. The checker says the same, by the schema."""
    known = LAYOUTS[layout]
    name = f"layout {layout}" if layout else "etcd without layout"
    for one in known.needs:
        if one not in fields:
            raise Refused(f'{fields.path}: {name} needs "{one}"')
    for other in LAYOUTS.values():
        for one in (*other.needs, *other.takes):
            if one in fields and one not in (*known.needs, *known.takes):
                raise Refused(f'{fields.path}.{one}: {name} has no "{one}"; remove it')


def _check_values(layout: str, instance: Instance, path: str) -> None:
    """Raise ``Refused`` for values with which nobody could find the instance."""
    wrong = {
        "service": part_problem(instance.service) if instance.service else "",
        "instanceId": _id_problem(instance.id) if instance.id else "",
        "prefix": _prefix_problem(instance.prefix) if instance.prefix else "",
        "domain": _domain_problem(instance.domain) if instance.domain else "",
        "key": key_problem(instance.key) if instance.key else "",
        "scheme": "" if instance.scheme in {"http", "https"} else "expected http or https",
    }
    for name, problem in wrong.items():
        if problem:
            raise Refused(f"{path}.{name}: {problem}")
    if layout == FREE and not instance.port:
        for name in ("{port}", "{authority}"):
            if name in instance.key + instance.value:
                raise Refused(f'{path}: {name} needs "port"')
    if problem := layout_problem(layout, instance):
        raise Refused(f"{path}.{problem}")


def _id_problem(text: str) -> str:
    return part_problem(text) or (f'"{text}" has a "/"; it is one segment of the key' if "/" in text else "")


def _prefix_problem(text: str) -> str:
    return key_problem(text) or ("" if text[0] == "/" else f'"{text}" does not begin with "/"; write /{text}')


def _domain_problem(text: str) -> str:
    labels = text.removesuffix(".").split(".")
    valid = all(0 < len(label) < 64 and _is_label(label) for label in labels)
    return "" if valid else f'"{text}" is no name in DNS; write letters, digits and "-" between the dots'


def _is_label(text: str) -> bool:
    return text.isascii() and all(character.isalnum() or character in "-_" for character in text)
