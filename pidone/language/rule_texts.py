"""Describes each rule in one sentence, for people who read its name and for tools that list rules.

Each rule is either an error or a warning. An error cannot work as it is written; a warning works and is rarely
intended. The rules of scalars that the schema names, such as ``port``, are in the schema.
"""

from collections.abc import Mapping

ERRORS: Mapping[str, str] = {
    # the file
    "ambiguous-scalar": "Readers of YAML 1.1 and of YAML 1.2 make different values of the same word.",
    "character": "A character that cannot be seen, or looks like another one, is a part of a word.",
    "complex-key": "A key of a mapping is a list or a mapping; kubectl accepts no object of such a file.",
    "duplicate-key": "A key stands twice in one mapping; readers keep the first, the last, or neither.",
    "empty": "A file that is to be checked has nothing in it.",
    "encoding": "A file is neither UTF-8, nor UTF-16 with a byte order mark.",
    "key": "A key of a mapping is not text.",
    "kind": "apiVersion and kind do not say TaskSet or TaskBinding.",
    "merge-key": "YAML 1.2 has no merge key, and readers of YAML 1.1 follow it.",
    "too-deep": "Values are nested deeper than the language ever needs.",
    "too-large": "A file, or a document with its aliases written out, is too large.",
    "too-many-aliases": "A document has more aliases than a person writes.",
    "unknown-anchor": "An alias has no anchor before it.",
    "yaml-syntax": "The file is not YAML.",
    "yaml-tag": "YAML tags have no meaning in the language.",
    # the schema
    "duplicate-item": "An item stands twice in a list of different things.",
    "enum": "A word is none of those that are known in its place.",
    "length": "A list or a text has too few or too many items or characters.",
    "missing-field": "A field that is needed is not there.",
    "range": "A number is too small or too great.",
    "schema": "A value does not fit the schema.",
    "type": "A value is of another type than its place takes.",
    "unknown-field": "A field is not known in its place.",
    # what it means
    "bound-task": "Two sets that the same pods get have a task of one name.",
    "command": "A program is not given by its absolute path.",
    "contradiction": "A task waits for states that are never there at once.",
    "cycle": "Tasks wait for each other, so none of them ever starts.",
    "disable": "A task is disabled that no extended set has.",
    "duplicate-object": "Two objects of a file have the same kind, namespace and name.",
    "duplicate-param": "Two params of a set have the same name.",
    "duplicate-task": "Two tasks of a set have the same name.",
    "event": "An event, which does not last, stands where a state is waited for.",
    "extends-cycle": "Sets extend each other.",
    "extends-depth": "Sets extend sets that extend sets, too deep for a person to follow.",
    "extends-size": "A set has, with all that it extends, too many tasks or params.",
    "inherited-param": "Two extended sets declare one param differently.",
    "inherited-task": "A task is inherited twice, or is there beside an inherited one of its name.",
    "instance-clash": "Two register tasks keep the same instance in the same registry.",
    "lease": "A heartbeat comes too late for its lease.",
    "map-key": "A key of a map is none that the registry takes.",
    "override": "A task has the name of an inherited one without override, or overrides a task that is not inherited.",
    "param-constraint": "A constraint of a param does not fit its type, or another constraint.",
    "param-value": "A param has no value in any pod of a binding.",
    "param-type": "A value is not of the type, or outside of the constraints, of its param.",
    "pattern": "A pattern is not a regular expression that is matched in linear time, or is too large.",
    "port-clash": "Two tasks listen on one port, or a probe asks a port that pidone itself listens on.",
    "reference": "A reference stands where it has no meaning, or is not closed.",
    "reserved-name": "A task has the name of something that events come from.",
    "selector": "A label selector has an expression that is not complete, or that no pod can fit.",
    "tainted": "A reference stands where only a literal may stand.",
    "tainted-command": "The program that is run is made of references.",
    "tainted-key": "A key is made of references.",
    "task-kind": "A field names a task with another action than it takes.",
    "unknown-event": "An edge names an event that there is not.",
    "unknown-param": "A reference, or a value of a binding, is for a param that is not declared.",
    "unknown-reference": "A reference leads to nothing that is known.",
    "unknown-set": "A set is extended or bound that is not there.",
    "unknown-state": "An edge names a state that the task's action does not have.",
    "unknown-task": "A task is named that is not in the set.",
    "variable": "A program would get a variable that can make it load code from elsewhere.",
}

WARNINGS: Mapping[str, str] = {
    "absent-set": "A set is in none of the files that are checked together, so that what uses it was not checked.",
    "backoff": "The first wait of a backoff is longer than its longest.",
    "drain": "There is not enough time for a drain.",
    "early-heartbeat": "A heartbeat begins before its registration is there.",
    "every-pod": "A binding selects every pod.",
    "farewell": "A task that runs when the pod ends has a longer limit than there is time.",
    "follow": "A registration is paused by a probe that it does not follow.",
    "loop": "A task is started by its own runs.",
    "no-effect": "A field has no effect on this kind of task.",
    "object-twice": "An object is in two files.",
    "pattern-anchors": "A pattern that is not anchored takes every text with a fitting part.",
    "period": "A period is shorter than the second between two starts of a task.",
    "placeholder": "A placeholder of another tool stands in a value, and nothing replaces it.",
    "probe-exec": "A probe starts a program where a port could be asked.",
    "probe-host": "A probe asks another host than its own pod.",
    "registered-metrics": "A registration leads callers to the port of the metrics.",
    "repeated-name": "A header or a variable is there twice.",
    "program": "A program is not in the folder whose programs a pod runs.",
    "secret": "A password or a token is written in an object, which others can read.",
    "shell": "A command is written as for a shell, and there is none.",
    "short-lease": "One heartbeat or renewal that fails ends the lease.",
    "stop-timeout": "A register task does not say how long its deregistration may take.",
    "timeout": "A time limit is longer than the period, or ends what is to last.",
    "typography": "A character looks like another one, or like nothing, and is a part of the value.",
    "unused-param": "No task uses a param.",
    "url-end": "A URL ends in what pidone adds to it.",
}


def description(rule: str) -> str:
    """Return the description of a rule; of scalars and choices it is made from the schema."""
    if rule.startswith("no-") and rule not in WARNINGS:
        return f"A {rule[3:]} is missing where there must be one."
    if rule.startswith("two-"):
        return f"There are several {rule[4:]} where there must be one."
    from pidone.language.schemas import value_rules

    return ERRORS.get(rule) or WARNINGS.get(rule) or value_rules().get(rule, rule)
