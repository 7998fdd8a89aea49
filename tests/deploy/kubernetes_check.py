"""Checks Kubernetes objects; runs in the environment of `requirements/kubernetes.txt`.

    python kubernetes_check.py SCHEMAS < rendered.yaml

Kinds of Kubernetes itself go by its published schemas, strictly; kinds of others by `SCHEMAS/KIND.json`, and the
pods in them as pods. Prints one line a complaint.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

VERSION = "1.37"


def complaints(document: dict[str, Any], schemas: Path) -> Iterator[str]:
    name = f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"
    path = schemas / f"{str(document.get('kind')).lower()}.json"
    if path.exists():
        checker = jsonschema.Draft202012Validator(json.loads(path.read_text()))
        for error in checker.iter_errors(document):
            yield f"{name}: {error.json_path}: {error.message}"
        for template in document["spec"].get("leaderWorkerTemplate", {}).values():
            if isinstance(template, dict):
                pod = {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": name},
                    "spec": template["spec"],
                }
                yield from complaints(pod, schemas)
        return
    try:
        kubernetes_validate.validate(document, VERSION, strict=True)
    except Exception as error:
        yield f"{name}: {error}"


if __name__ == "__main__":
    for each in yaml.safe_load_all(sys.stdin):
        for line in complaints(each, Path(sys.argv[1])):
            print(line.replace("\n", " "))
