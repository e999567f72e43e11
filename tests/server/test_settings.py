import re

import pytest
from pydantic import ValidationError

from alexnet_server.errors import StartError
from alexnet_server.settings import Settings, load_settings


def test_defaults_are_for_this_machine_alone():
    settings = load_settings([])
    assert settings.host == "127.0.0.1"
    assert (settings.http_port, settings.grpc_port) == (8080, 8081)
    assert settings.max_photo_bytes == 10 * 2**20
    assert settings.max_body_bytes == 64 * 2**20
    assert settings.max_pixels == 50_000_000


def test_flags_go_before_variables(monkeypatch):
    monkeypatch.setenv("ALEXNET_QUEUE_SIZE", "7")
    monkeypatch.setenv("ALEXNET_HOST", "0.0.0.0")
    settings = load_settings(["--queue-size", "9"])
    assert settings.queue_size == 9
    assert settings.host == "0.0.0.0"


def test_they_do_not_change():
    with pytest.raises(ValidationError):
        load_settings([]).queue_size = 5


@pytest.mark.parametrize("arguments", [["--cors-origins", "a,b"], ["--cors-origins=a", "--cors-origins=b"]])
def test_several_origins(arguments):
    assert load_settings(arguments).cors_origins == ("a", "b")


def test_several_origins_in_a_variable(monkeypatch):
    monkeypatch.setenv("ALEXNET_CORS_ORIGINS", "https://a, https://b")
    assert load_settings([]).cors_origins == ("https://a", "https://b")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--queue-size=0"],
            "--queue-size (ALEXNET_QUEUE_SIZE): input should be greater than",
        ),
        (
            ["--device=tpu"],
            "--device (ALEXNET_DEVICE): give auto, cpu, cuda, or cuda:N for card N, got 'tpu'",
        ),
        (["--request-timeout-s=0"], "--request-timeout-s"),
        (["--http-port=9", "--grpc-port=9"], "must differ"),
        (["--max-photo-bytes=100", "--max-body-bytes=10"], "larger than --max-body-bytes"),
        (["--tls-key-file=k"], "must be given together"),
        (["stray"], "unrecognized arguments: stray"),
        (["--queue-siz=3"], "unrecognized arguments: --queue-siz=3; did you mean --queue-size?"),
        (["--zzz"], "unrecognized arguments: --zzz (see alexnet-server --help)"),
        (["--triton-url=http://triton:8000"], "--triton-url (ALEXNET_TRITON_URL): it must be host:port"),
        (["--triton-url=triton"], "it must be host:port, such as triton:8001"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_line(arguments, words):
    with pytest.raises(StartError, match=re.escape(words)) as refusal:
        load_settings(arguments)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("address", ["triton:8001", "[::1]:8001", "dns:///triton:8001", "unix:/run/triton"])
def test_addresses_of_triton(address):
    assert load_settings([f"--triton-url={address}"]).triton_url == address


def test_a_secret_is_never_shown(monkeypatch):
    monkeypatch.setenv("ALEXNET_API_KEYS", "very-secret-key")
    assert "very-secret-key" not in repr(load_settings([]))


def test_misspelt_variables():
    with pytest.raises(StartError, match="did you mean ALEXNET_QUEUE_SIZE"):
        load_settings([], {"ALEXNET_QUEU_SIZE": "1"})


@pytest.mark.parametrize(
    "name",
    [
        "ALEXNET_SERVICE_HOST",
        "ALEXNET_SERVICE_PORT",
        "ALEXNET_SERVICE_PORT_HTTP",
        "ALEXNET_PORT",
        "ALEXNET_PORT_8080_TCP_ADDR",
    ],
)
def test_what_kubernetes_sets_for_a_service_of_our_name_is_not_ours(name):
    load_settings([], {name: "tcp://10.0.0.1:80"})


def test_help_tells_every_flag_with_its_variable(capsys):
    with pytest.raises(SystemExit) as end:
        load_settings(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert not re.search(r"\b(str|int|float|bool|tuple|Path|None|null|SecretStr|Optional)\b|\[str", printed)
    assert max(map(len, printed.splitlines())) <= 80
    for words in (
        "--http-port Port",
        "--model-repository Folder",
        "--device Device",
        "--max-photo-bytes Bytes",
        "(default: 10485760)",
        "--request-timeout-s Seconds",
        "--access-log, --no-access-log",
        "unpack [DIR]",
        "--version",
    ):
        assert words in printed
    text = " ".join(printed.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert f"ALEXNET_{name.upper()}" in text
        assert field.description


@pytest.mark.parametrize("variable", ["ALEXNET_GRPC_PORT", "ALEXNET_HTTP_PORT"])
def test_service_links_of_services_called_as_our_ports(variable, monkeypatch, caplog):
    monkeypatch.setenv(variable, "tcp://10.0.0.1:80")
    settings = load_settings([])
    assert (settings.http_port, settings.grpc_port) == (8080, 8081)
    assert f"{variable}=tcp://10.0.0.1:80 is a Kubernetes service link" in caplog.text


def test_variables_that_resemble_no_setting_are_told_and_passed_over(caplog):
    load_settings([], {"ALEXNET_VERSION_LABEL": "7"})
    assert "ALEXNET_VERSION_LABEL in the environment is not a setting" in caplog.text


def test_empty_variables_are_unset(monkeypatch):
    for name in Settings.model_fields:
        if not name.startswith("api_keys"):
            monkeypatch.setenv(f"ALEXNET_{name.upper()}", "")
    assert load_settings([]) == Settings()


@pytest.mark.parametrize("name", ["ALEXNET_API_KEYS", "ALEXNET_API_KEYS_FILE", "alexnet_api_keys"])
def test_empty_keys_do_not_open_the_door(name):
    with pytest.raises(StartError, match="holds no API key"):
        load_settings([], {name: ""})


def test_an_origin_with_a_slash_behind_it(monkeypatch):
    assert load_settings(["--cors-origins=https://A.example/"]).cors_origins == ("https://a.example",)


def test_keys_for_metrics_need_keys():
    with pytest.raises(StartError, match="--metrics-key needs --api-keys"):
        load_settings(["--metrics-key"])
