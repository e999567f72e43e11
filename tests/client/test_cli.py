"""The `alexnet` command."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from alexnet_client import _folders, cli
from alexnet_client.pb import classifier_pb2 as pb
from tests.client.conftest import Failure, answer_of


@pytest.fixture
def run(fake, capsys, monkeypatch):
    """Run the command against the fake server; its status, output and complaints."""

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = cli.main([*arguments, "--address", fake.address])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt", "deeper/c.webp"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "photos"


def picky(request, context):
    if request.image.encoded == b"notes.txt":
        Failure(grpc.StatusCode.INVALID_ARGUMENT, "this is text", x_error_code="unsupported_format").end(
            context
        )
    return answer_of(request.image)


def test_a_table_for_people(run, folder):
    status, out, err = run("classify", str(folder / "b.jpg"))
    assert (status, err) == (0, "")
    assert out == f"{folder}/b.jpg\n    1   75.0%  n02124075  b.jpg\n"


@pytest.mark.parametrize(
    ("terminal", "environ", "coloured"),
    [(True, {}, True), (True, {"NO_COLOR": "1"}, False), (False, {}, False)],
)
def test_colour_is_for_terminals(run, folder, monkeypatch, terminal, environ, coloured):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    _, out, _ = run("classify", str(folder / "b.jpg"), str(folder / "a.PNG"))
    assert out.count("\x1b[1;32m") == out.count("\x1b[0m") == (2 if coloured else 0)
    _, out, _ = run("classify", str(folder / "b.jpg"), "--json")
    assert "\x1b" not in out


def test_a_folder_is_searched_for_photos_by_name(run, folder):
    status, out, err = run("classify", str(folder), "--json")
    assert (status, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["photo"] for line in lines] == [
        str(folder / name) for name in ("a.PNG", "b.jpg", "deeper/c.webp")
    ]
    assert lines[0]["predictions"] == [
        {"rank": 1, "index": 7, "wnid": "n02124075", "label": "a.PNG", "score": 0.75}
    ]
    assert lines[0]["model"] == "alexnet"


def test_standard_input(run):
    status, out, _ = run("classify", "-", "--json", stdin=b"from a pipe")
    assert status == 0
    assert json.loads(out)["predictions"][0]["label"] == "from a pipe"


def test_a_failed_photo_fails_the_command_and_not_the_others(run, fake, folder):
    fake.reply = picky
    status, out, err = run("classify", str(folder / "notes.txt"), str(folder / "b.jpg"), "/no/such.jpg")
    assert status == 1
    assert out == f"{folder}/b.jpg  b.jpg 75.0 %\n"
    assert err.splitlines() == [
        f"alexnet: {folder}/notes.txt: this is text (unsupported_format)",
        "alexnet: /no/such.jpg: cannot read the photo: [Errno 2] No such file or directory: '/no/such.jpg' "
        "(unreadable)",
    ]


def test_errors_are_objects_in_json(run, fake, folder):
    fake.reply = picky
    status, out, err = run("classify", "--json", str(folder / "notes.txt"))
    assert (status, err) == (1, "")
    assert json.loads(out) == {
        "photo": str(folder / "notes.txt"),
        "error": {"code": "unsupported_format", "message": "this is text"},
    }


def test_no_photos_at_all_is_a_failure(run, tmp_path):
    status, out, err = run("classify", str(tmp_path))
    assert (status, out, err) == (1, "", "alexnet: no photos found\n")


def test_what_is_asked(run, fake, folder):
    run("classify", str(folder / "b.jpg"), "--top-k", "3", "--views", "ten")
    run("classify", str(folder / "b.jpg"), "--model", "alexnet_dense")
    assert (fake.requests[0].top_k, fake.requests[0].views) == (3, pb.VIEWS_TEN)
    assert fake.requests[1].model == "alexnet_dense"


def test_nobody_there(fake, folder, capsys):
    fake.stop()
    assert cli.main(["classify", str(folder), "--address", fake.address, "--timeout-s", "20"]) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith(f"alexnet: no server at {fake.address}; start one with alexnet-server (")


def test_a_missing_key(run, fake, folder, tmp_path, monkeypatch):
    fake.fail = lambda _attempt: Failure(
        grpc.StatusCode.UNAUTHENTICATED, "a key is required", x_error_code="unauthenticated"
    )
    status, _, err = run("classify", str(folder / "b.jpg"))
    assert status == 1
    assert "a key is required (unauthenticated); give its key with --api-key-file or $ALEXNET_API_KEY" in err


def test_the_key_comes_from_a_file_or_the_environment(run, fake, tmp_path, monkeypatch):
    file = tmp_path / "key"
    file.write_text("from-a-file\n")
    run("labels", "--api-key-file", str(file))
    monkeypatch.setenv("ALEXNET_API_KEY", "from-the-environment")
    run("labels")
    assert [each["authorization"] for each in fake.metadata] == [
        "Bearer from-a-file",
        "Bearer from-the-environment",
    ]


def test_labels(run):
    assert run("labels") == (0, "0\tn02124075\tEgyptian cat\n", "")


def test_health(run, fake):
    assert run("health") == (0, "SERVING\n", "")
    fake.health = 2
    assert run("health") == (1, "NOT_SERVING\n", "")


def test_an_error_of_the_call(run, fake):
    fake.fail = lambda attempt: Failure(
        grpc.StatusCode.NOT_FOUND, "no model 'x'", x_error_code="unknown_model"
    )
    status, out, err = run("labels", "--model", "x")
    assert (status, out) == (1, "")
    assert err == "alexnet: no model 'x'\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["classify"], "PHOTO"),
        (["classify", "x.jpg", "--views", "all"], "--views"),
        (["classify", "x.jpg", "--views", "ten", "--model", "m"], "not both"),
        (["classify", "x.jpg", "--timeout-s", "0"], "timeout_s must be above 0"),
        (["labels", "--api-key-file", "/no/such/file"], "/no/such/file"),
        (["labels", "--ca-file", "/no/such/file"], "/no/such/file"),
    ],
)
def test_wrong_usage_exits_with_2(fake, capsys, arguments, says):
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments, *(["--address", fake.address] if arguments else [])])
    assert caught.value.code == 2
    assert says in capsys.readouterr().err


def test_progress_has_a_total(run, folder):
    status, out, err = run("classify", str(folder), "--progress")
    assert (status, len(out.splitlines())) == (0, 3)
    assert err.startswith("3/3 photos, ")


def test_several_photos_are_a_line_each_unless_more_labels_are_asked_for(run, folder):
    _, out, _ = run("classify", str(folder))
    assert out.splitlines()[1] == f"{folder}/b.jpg  b.jpg 75.0 %"
    _, out, _ = run("classify", str(folder), "--top-k", "1")
    assert out.splitlines()[2:4] == [f"{folder}/b.jpg", "    1   75.0%  n02124075  b.jpg"]


def test_what_is_no_photo_of_the_users_is_passed_over(run, tmp_path):
    photos = ["a.jfif", "b.jpe", "deeper/c.jpg"]
    others = ["._a.jpg", ".hidden.jpg", "@eaDir/a.jpg", "__MACOSX/a.jpg", ".git/a.jpg", "notes.txt"]
    for name in photos + others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "deeper" / "loop").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "deeper")
    status, out, _ = run("classify", str(tmp_path), "--json")
    found = [json.loads(line)["photo"].removeprefix(f"{tmp_path}/") for line in out.splitlines()]
    assert status == 0
    assert found == ["a.jfif", "b.jpe", "again/c.jpg"]


def test_a_name_that_cannot_be_printed_ends_nothing(fake, tmp_path):
    for name in (b"a\xff.jpg", "b\u00e9.jpg".encode(), b"c\x1b[2Jd\n.jpg"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"x")
    command = [sys.executable, "-m", "alexnet_client.cli", "classify", str(tmp_path), "--address"]
    for flags, encoding in (([], "ascii"), (["--json"], "utf-8")):
        environ = os.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run([*command, fake.address, *flags], env=environ, capture_output=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, b"")
        lines = done.stdout.decode(encoding).split("\n")
        assert len(lines) == 4
        assert all(line.isprintable() for line in lines)
    assert [Path(json.loads(line)["photo"]).name for line in lines[:3]] == [
        "a\udcff.jpg",
        "b\u00e9.jpg",
        "c\x1b[2Jd\n.jpg",
    ]


def test_a_folder_is_watched(fake, tmp_path, monkeypatch, capsys):
    (tmp_path / "first.jpg").write_bytes(b"first")
    looks = []

    def look(_seconds):
        looks.append(None)
        if len(looks) == 3:
            (tmp_path / "second.jpg").write_bytes(b"sec")
        if len(looks) == 4:  # still being written when it was seen first
            (tmp_path / "second.jpg").write_bytes(b"second")
        if len(looks) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(_folders.time, "sleep", look)
    assert cli.main(["classify", "--watch", str(tmp_path), "--address", fake.address]) == 130
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/first.jpg  first 75.0 %",
        f"{tmp_path}/second.jpg  second 75.0 %",
    ]


def test_only_a_folder_is_watched(fake, folder, capsys):
    with pytest.raises(SystemExit):
        cli.main(["classify", "--watch", str(folder / "b.jpg"), "--address", fake.address])
    assert "--watch takes folders" in capsys.readouterr().err


def test_models(run):
    assert run("models") == (0, "alexnet\t1\tcenter\t200 classes\tint8\tcpu\n", "")


def test_features(run, folder):
    status, out, err = run("features", str(folder / "b.jpg"), "/no/such.jpg")
    assert (status, err) == (1, "")
    first, second = (json.loads(line) for line in out.splitlines())
    assert first["features"] == [0.0, 1.5, 2.0]
    assert second["error"]["code"] == "unreadable"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_commands_and_flags(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "classify features labels models health" in script
    assert "watch" in script


def test_bash_completes(capsys, tmp_path):
    cli.main(["completion", "bash"])
    (tmp_path / "script").write_text(
        capsys.readouterr().out
        + "\nCOMP_WORDS=(alexnet classify --wa) COMP_CWORD=2; _alexnet; echo $COMPREPLY\n"
    )
    done = subprocess.run(["bash", tmp_path / "script"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("--watch\n", "")


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "  alexnet classify photos --progress" in capsys.readouterr().out


def test_a_closed_pipe_is_no_traceback(fake, folder):
    command = [sys.executable, "-m", "alexnet_client.cli", "labels", "--address", fake.address]
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    done = subprocess.run(command, stdout=reader.stdin, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    reader.stdin.close()


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("alexnet ")
