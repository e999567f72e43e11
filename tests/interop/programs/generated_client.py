"""A client that openapi-python-client has generated: generated_client.py FOLDER URL PHOTO."""

import importlib
import io
import json
import pkgutil
import re
import sys

folder, url, path = sys.argv[1:]
sys.path.insert(0, folder)
generated = importlib.import_module("generated")
types = importlib.import_module("generated.types")


def operation(name):
    """The module of an operation, in whichever folder its tag has put it."""
    api = importlib.import_module("generated.api")
    found = [each.name for each in pkgutil.walk_packages(api.__path__, "generated.api.")]
    (module,) = [each for each in found if each.rpartition(".")[2] == name]
    return importlib.import_module(module)


classify = operation("classify")
with open(path, "rb") as file:
    photo = types.File(payload=io.BytesIO(file.read()), file_name="photo.png", mime_type="image/png")
models = importlib.import_module("generated.models")
forms = [each for name, each in vars(models).items() if re.fullmatch(r"Classify(?!.*Batch)\w*Body", name)]
(form,) = forms
with generated.Client(base_url=url) as client:
    answer = classify.sync_detailed(client=client, body=form(image=photo))
best = answer.parsed.predictions[0].label
sys.stdout.write(json.dumps({"status": int(answer.status_code), "best": best}) + "\n")
