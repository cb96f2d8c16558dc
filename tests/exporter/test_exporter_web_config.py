"""The web configuration file: what is asked for is done or refused, and it may change at any time."""

from __future__ import annotations

import base64
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import trustme
import yaml
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st
from trainvitals_exporter.endpoint import server
from trainvitals_exporter.endpoint.rate_limit import RateLimit
from trainvitals_exporter.endpoint.web_config import WebConfig
from trainvitals_exporter.yaml_files import Unusable

from tests.conftest import wait_until
from tests.exporter.conftest import StartExporter
from tests.exporter.exporter_process import DEADLINE, ExporterProcess
from tests.exporter.raw_client import GET, RawClient, address

MEMORY = "trainvitals_host_memory_total_bytes"
HASH = bcrypt.hashpw(b"secret", bcrypt.gensalt(5)).decode()
RELOADS = "trainvitals_exporter_web_config_reloads_total"


@dataclass
class Certificates:
    """A folder with certificates, and what a client needs to be believed and to believe."""

    folder: Path
    authority: trustme.CA

    def issue(self, name: str, *identities: str) -> None:
        """Put a certificate and its key into the folder, as NAME.crt and NAME.key."""
        made = self.authority.issue_cert(*identities)
        made.cert_chain_pems[0].write_to_path(str(self.folder / f"{name}.crt"))
        made.private_key_pem.write_to_path(str(self.folder / f"{name}.key"))

    def client(self, name: str = "") -> ssl.SSLContext:
        """A client that knows the authority, and that has this certificate."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if name:
            context.load_cert_chain(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        return context

    def text(self, file: str) -> str:
        return (self.folder / file).read_text()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certificates(authority: trustme.CA, tmp_path: Path) -> Certificates:
    made = Certificates(tmp_path, authority)
    made.issue("server", "localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    (tmp_path / "no_pem.txt").write_text("this is no certificate\n")
    return made


def write(folder: Path, content: object) -> Path:
    """The web configuration file; put there in one move, as it should be."""
    path, scratch = folder / "web.yml", folder / "web.yml.new"
    scratch.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    scratch.replace(path)
    return path


def with_tls(**more: Any) -> dict[str, Any]:
    return {"tls_server_config": {"cert_file": "server.crt", "key_file": "server.key", **more}}


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


# What is refused

TLS = "tls_server_config"
HTTP = "http_server_config"
CA = {"client_ca_file": "ca.crt"}
VERIFIED = {"client_auth_type": "RequireAndVerifyClientCert", **CA}
BAD: list[tuple[object, str]] = [
    ("tls_server_config: {", "is not YAML that can be used: "),
    ("a: b: c", "is not YAML that can be used: mapping values are not allowed here in line 1, column 5"),
    ("\x00", "is not YAML that can be used: "),
    (b"\xff\xfe\xff".decode("latin-1"), "has to hold `name: value` pairs"),
    ("- a", "has to hold `name: value` pairs"),
    ("just text", "has to hold `name: value` pairs"),
    ("1: 2", "has to hold `name: value` pairs"),
    ("a: !!python/object/apply:os.getcwd []", "is not YAML that can be used: could not determine a constructor"),
    ("rate_limit: {}\nrate_limit: {}", "rate_limit is there twice in line 1"),
    (f"basic_auth_users:\n  a: {HASH}\n  a: {HASH}", "a is there twice in line 2"),
    ({"tls_config": {}}, "unknown key tls_config; there are: basic_auth_users, http_server_config, rate_limit, tls_"),
    ({TLS: ["cert"]}, "tls_server_config has to hold `name: value` pairs"),
    (with_tls(cert_fil="x"), "unknown key tls_server_config.cert_fil; there are: cert, cert_file, "),
    ({TLS: {"min_version": "TLS12"}}, "one of cert_file and cert is needed"),
    ({TLS: {"cert_file": "server.crt"}}, "one of key_file and key is needed"),
    ({TLS: {"key_file": "server.key"}}, "one of cert_file and cert is needed"),
    ({TLS: {"cert_file": "", "key_file": "server.key"}}, "one of cert_file and cert is needed"),
    ({TLS: {"cert_file": "", "key_file": ""}}, "one of cert_file and cert is needed"),
    (with_tls(cert_file="nowhere.crt"), "tls_server_config.cert_file: {folder}/nowhere.crt is not a file"),
    (with_tls(key_file="nowhere.key"), "tls_server_config.key_file: {folder}/nowhere.key is not a file"),
    (with_tls(cert_file=7), "tls_server_config.cert_file: expected text"),
    (with_tls(cert_file="no_pem.txt"), "certificate and key: not usable as PEM"),
    (with_tls(key_file="no_pem.txt"), "certificate and key: not usable as PEM"),
    (with_tls(key_file="other.key"), "certificate and key: they do not belong together"),
    (with_tls(key_file="locked.key"), "the key is encrypted; it has to be without a passphrase"),
    (with_tls(cert="x"), "give cert or cert_file, not both"),
    ({TLS: {"cert": "x", "key": "y"}}, "certificate and key: not usable as PEM"),
    (with_tls(client_auth_type="RequireClientCert"), "RequireClientCert lets anyone in and is not supported"),
    (with_tls(client_auth_type="RequireAnyClientCert", **CA), "RequireAnyClientCert lets anyone in"),
    (with_tls(client_auth_type="RequestClientCert"), "RequestClientCert lets anyone in"),
    (with_tls(client_auth_type="Always", **CA), "client_auth_type: unknown Always; there are: NoClientCert, "),
    (with_tls(client_auth_type="RequireAndVerifyClientCert"), "client_ca_file is missing"),
    (with_tls(client_auth_type="VerifyClientCertIfGiven"), "client_ca_file is missing"),
    (with_tls(**CA), "client_auth_type is missing; without it, no client's certificate is verified"),
    (with_tls(client_ca="x"), "client_auth_type is missing"),
    (with_tls(**{**VERIFIED, "client_ca_file": "nowhere.crt"}), "client_ca_file: {folder}/nowhere.crt is not a file"),
    (with_tls(**{**VERIFIED, "client_ca_file": "no_pem.txt"}), "the client CA holds no certificate in PEM"),
    (with_tls(client_auth_type="RequireAndVerifyClientCert", client_ca="x"), "the client CA holds no certificate"),
    (with_tls(client_allowed_sans=["a"]), "client_allowed_sans needs client_auth_type: RequireAndVerifyClientCert"),
    (
        with_tls(client_auth_type="VerifyClientCertIfGiven", client_allowed_sans=["a"], **CA),
        "client_allowed_sans needs client_auth_type: RequireAndVerifyClientCert",
    ),
    (with_tls(**VERIFIED, client_allowed_sans="a"), "client_allowed_sans: expected a list of texts"),
    (with_tls(min_version="TLS14"), "min_version: unknown TLS version TLS14; there are: TLS12, TLS13"),
    (with_tls(min_version="TLS10"), "min_version: TLS10 is not safe and not supported; use TLS12 or TLS13"),
    (with_tls(max_version="TLS11"), "max_version: TLS11 is not safe"),
    (with_tls(min_version=["TLS12"]), "min_version: expected text"),
    (with_tls(min_version="TLS13", max_version="TLS12"), "min_version is above max_version"),
    (with_tls(cipher_suites=["TLS_MADE_UP_WITH_THIS"]), "unknown cipher TLS_MADE_UP_WITH_THIS; there are: TLS_ECDHE_"),
    (with_tls(cipher_suites=["TLS_RSA_WITH_AES_128_CBC_SHA"]), "unknown cipher TLS_RSA_WITH_AES_128_CBC_SHA"),
    (with_tls(cipher_suites=["TLS_AES_128_GCM_SHA256"]), "one of TLS 1.3, whose suites cannot be chosen"),
    (with_tls(cipher_suites="HIGH"), "cipher_suites: expected a list of texts"),
    (with_tls(curve_preferences=["CurveP257"]), "unknown curve CurveP257; there are: CurveP256, "),
    (with_tls(curve_preferences=["CurveP256", "X25519"]), "Python's ssl can be given one curve only"),
    (with_tls(prefer_server_cipher_suites="yes, please"), "prefer_server_cipher_suites: expected true or false"),
    ({HTTP: {"http3": True}}, "unknown key http_server_config.http3; there are: headers, http2"),
    ({HTTP: {"http2": True}}, "http_server_config.http2: HTTP/2 is not supported here"),
    ({HTTP: {"http2": "false"}}, "http_server_config.http2: expected true or false"),
    (
        {HTTP: {"headers": {"X-Powered-By": "x"}}},
        "unknown key http_server_config.headers.X-Powered-By; there are: ",
    ),
    ({HTTP: {"headers": {"X-Frame-Options": "allow"}}}, "X-Frame-Options: expected deny or sameorigin, got allow"),
    ({HTTP: {"headers": {"X-Content-Type-Options": "sniff"}}}, "X-Content-Type-Options: expected nosniff, got sniff"),
    ({HTTP: {"headers": {"X-XSS-Protection": "1\r\nSet-Cookie: a=b"}}}, "X-XSS-Protection: expected printable ASCII"),
    ({HTTP: {"headers": {"X-XSS-Protection": 1}}}, "X-XSS-Protection: expected printable ASCII text"),
    ({"basic_auth_users": ["alice"]}, "basic_auth_users has to hold `name: value` pairs"),
    ({"basic_auth_users": {"alice": "secret"}}, "the password of alice is no bcrypt hash; `htpasswd -nB` makes one"),
    ({"basic_auth_users": {"alice": HASH[:-1]}}, "the password of alice is no bcrypt hash"),
    ({"basic_auth_users": {"alice": HASH.replace("$05$", "$99$")}}, "the password of alice is no bcrypt hash"),
    ({"basic_auth_users": {"alice": None}}, "the password of alice is no bcrypt hash"),
    ({"basic_auth_users": {1000: HASH}}, "put 1000 into quotation marks"),
    ({"basic_auth_users": {"a:b": HASH}}, "'a:b' cannot be a user's name"),
    ({"basic_auth_users": {"": HASH}}, "'' cannot be a user's name"),
    ({"rate_limit": {"every": "1s"}}, "unknown key rate_limit.every; there are: burst, interval"),
    ({"rate_limit": {"interval": "1s"}}, "rate_limit.burst: expected a whole number from 1"),
    ({"rate_limit": {"interval": "1s", "burst": 1.5}}, "rate_limit.burst: expected a whole number from 1"),
    ({"rate_limit": {"interval": 1, "burst": 1}}, "rate_limit.interval: '1' is not a duration, such as 500ms or 1s"),
    ({"rate_limit": {"interval": "-1s", "burst": 1}}, "rate_limit.interval: '-1s' is not a duration"),
    ({"rate_limit": {"interval": ["1s"], "burst": 1}}, "rate_limit.interval: 'list' is not a duration"),
    ({"rate_limit": {"interval": "9" * 400 + "h", "burst": 1}}, "rate_limit.interval: more than a day"),
    ({"rate_limit": {"interval": "1s", "burst": 10**400}}, "rate_limit.burst: expected a whole number from 1"),
    (
        {"basic_auth_users": {"alice": HASH.replace("$05$", "$17$")}},
        "the bcrypt cost of alice is above 16: slower than",
    ),
    ({"tls_server_config": {"cert": ["x"], "key": "y"}}, "tls_server_config.cert: expected text"),
    ({"tls_server_config": {"cert": 1, "key": "y"}}, "tls_server_config.cert: expected text"),
    ("\trate_limit: {}", "is not YAML that can be used: found character '\\t' that cannot start any token in line 1"),
    (
        "rate_limit:\n\tburst: 1",
        "is not YAML that can be used: found character '\\t' that cannot start any token in line 2",
    ),
    ("a: 2024-02-30", "is not YAML that can be used: this is no valid timestamp in line 1, column 4"),
    ("a: !!int word", "this is no valid int in line 1, column 4"),
    ("a: !!int ''", "this is no valid int in line 1, column 4"),
    ("a: !!bool maybe", "this is no valid bool in line 1, column 4"),
    ("a: !!timestamp soon", "this is no valid timestamp in line 1, column 4"),
    ("a: " + "9" * 5000, "this is no valid int in line 1, column 4"),
    ('basic_auth_users: {"\\ud800": x}', "this is no valid str in line 1, column 20"),
    ("? [a]\n: b", "is not YAML that can be used: found unhashable key in line 1"),
    ("a: *b", "is not YAML that can be used: found undefined alias 'b' in line 1"),
    ("a: &a [*a]", "an alias may only stand for a text or a number in line 1, column 8"),
    ("a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]", "an alias may only stand for a text or a number in line 2, column 8"),
    ("a: &a {b: c}\nd: {<<: *a}", "an alias may only stand for a text or a number in line 2, column 9"),
    ("--- {}\n--- {}", "is not YAML that can be used: but found another document in line 2"),
    ("%YAML 9.9\n--- {}", "is not YAML that can be used: found incompatible YAML document"),
    ("rate_limit: {} }", "is not YAML that can be used: expected <block end>, but found '}' in line 1"),
    ("[" * 5000, "is not YAML that can be used: RecursionError"),
    ("a: " + "x" * (1 << 20), "is larger than a configuration can be"),
    ("".join(f"k{number}: 1\n" for number in range(20_000)), "unknown key k0; there are: "),
]


def test_bad_files(certificates: Certificates) -> None:
    """Each is refused with a sentence that says why, and shows no secret."""
    certificates.issue("other", "localhost")
    key = serialization.load_pem_private_key(certificates.text("server.key").encode(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"pass")
    )
    (certificates.folder / "locked.key").write_bytes(locked)
    for content, said in BAD:
        path = write(certificates.folder, content)
        with pytest.raises(Unusable) as caught:
            WebConfig.load(path)
        message = str(caught.value)
        assert message.startswith(f"{path}"), message
        assert said.replace("{folder}", str(certificates.folder)) in message, message
        assert "\n" not in message
        assert HASH not in message


def test_a_bad_file_is_a_usage_error(certificates: Certificates) -> None:
    for content, said in (
        BAD[10],
        ({"basic_auth_users": {"alice": "secret"}}, "no bcrypt hash"),
        (None, "No such file"),
    ):
        path = write(certificates.folder, content) if content else certificates.folder / "nowhere.yml"
        result = subprocess.run(
            [sys.executable, "-m", "trainvitals_exporter", "--listen", "127.0.0.1:0", "--web-config", path],
            capture_output=True, text=True, timeout=DEADLINE, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert result.returncode == 2
        assert said in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr


def test_files_that_are_no_text(tmp_path: Path) -> None:
    """A folder, bytes of no encoding, and a device that never ends."""
    path = tmp_path / "web.yml"
    path.write_bytes(b"rate_limit: \xff\xfe\n")
    for given_path, said in (
        (path, "is not YAML that can be used: invalid start byte"),
        (tmp_path, "cannot be read: Is a directory"),
        (Path("/dev/zero"), "is larger than a configuration can be"),
        (tmp_path / "a" / "b", "cannot be read: No such file"),
        (path / "b", "cannot be read: Not a directory"),
    ):
        with pytest.raises(Unusable) as caught:
            WebConfig.load(given_path)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


texts = st.sampled_from(["", "server.crt", "server.key", "ca.crt", "RequireAndVerifyClientCert", "TLS12", "1s", HASH])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.text(max_size=8)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | leaves, inner), max_leaves=5
)
keys = st.sampled_from(
    ["cert_file", "key_file", "client_ca_file", "client_auth_type", "client_allowed_sans", "min_version", "cert", "key",
     "cipher_suites", "curve_preferences", "prefer_server_cipher_suites", "http2", "headers", "interval", "burst", "a"]
)  # fmt: skip
sections = st.sampled_from(["tls_server_config", "http_server_config", "basic_auth_users", "rate_limit"])
files = st.dictionaries(sections, st.dictionaries(keys, values) | values)


def taken_or_refused(path: Path) -> None:
    """Refused in one line that names the file."""
    try:
        WebConfig.load(path)
    except Unusable as error:
        refused = str(error)
    else:
        return
    assert refused.startswith(str(path))
    assert len(refused.splitlines()) == 1, refused


def test_any_file_is_taken_or_refused(certificates: Certificates) -> None:
    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(content=files | values)
    def try_content(content: object) -> None:
        taken_or_refused(write(certificates.folder, yaml.safe_dump(content)))

    try_content()


SCALARS = [
    "~", "yes", "0", "-1", "1.5", ".inf", ".nan", "0x1F", "0b2", "0o9", "1:30", "190:20:30", "2024-01-01", "2024-13-01",
    "''", '"\\0"', '"\\ud800"', '"\\U0001f600"', "ünal", "1s", "1h", "9e999h", "server.crt", "server.key", "ca.crt",
    "TLS12", "TLS13", "RequireAndVerifyClientCert", "VerifyClientCertIfGiven", "CurveP256", HASH, "!!binary '=='",
    "!!set {a}", "!!omap [a]", "!!pairs [a: b]", "!!float x", "!!str 1", "!!null x", "!!timestamp x", "!x y",
    "!!python/name:os.system", "=", "<<", "&a x", "*a", "&a [x]", "[*a, *a]", "{<<: *a}", "|\n  text\n", ">-\n  text\n",
    "[", "]", "{", "}", "@", "`", "%", "\t",
]  # fmt: skip
SECTIONS = ["tls_server_config", "http_server_config", "basic_auth_users", "rate_limit", "headers", "<<", "?", "- "]
KEYS = [
    "cert_file", "key_file", "client_ca_file", "client_auth_type", "client_allowed_sans", "min_version", "max_version",
    "cert", "key", "client_ca", "cipher_suites", "curve_preferences", "prefer_server_cipher_suites", "http2", "headers",
    "interval", "burst", "alice", "<<", "? x", "- x", "a", "*a", "&a k",
]  # fmt: skip
nested = st.recursive(
    st.sampled_from(SCALARS), lambda inner: st.lists(inner, max_size=4).map(lambda i: f"[{', '.join(i)}]"), max_leaves=4
)
pairs = st.tuples(st.sampled_from(KEYS), nested).map(lambda pair: f"  {pair[0]}: {pair[1]}\n")
blocks = st.tuples(st.sampled_from(SECTIONS), st.lists(pairs, max_size=4)).map(lambda b: f"{b[0]}:\n{''.join(b[1])}")
documents = st.one_of(
    st.lists(blocks, max_size=3).map("".join).map(str.encode),
    st.lists(st.sampled_from(SCALARS + KEYS + [": ", "\n", "\n  ", ", ", "---", "..."]), max_size=12)
    .map("".join)
    .map(str.encode),
    st.binary(max_size=60),
)


def fuzz(folder: Path, how: settings) -> None:
    @how
    @given(documents)
    def try_document(document: bytes) -> None:
        path = folder / "web.yml"
        path.write_bytes(document)
        taken_or_refused(path)

    try_document()


def test_any_text_is_taken_or_refused(certificates: Certificates) -> None:
    fuzz(certificates.folder, settings(max_examples=600, deadline=None, derandomize=True))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_any_text_for_longer(certificates: Certificates) -> None:
    fuzz(certificates.folder, settings(max_examples=10_000, deadline=None))


def test_rate_limits_and_blank_values(tmp_path: Path) -> None:
    def loaded(content: object) -> WebConfig:
        return WebConfig.load(write(tmp_path, content))

    empty = loaded("")
    assert (empty.tls, empty.users, empty.rate_limit, empty.headers) == (None, None, None, ())
    sections_only = dict.fromkeys(("tls_server_config", "basic_auth_users", "http_server_config", "rate_limit"))
    assert loaded(sections_only).protections == frozenset()
    assert loaded({"http_server_config": {"http2": False, "headers": {"X-Frame-Options": ""}}}).headers == ()
    assert loaded({"rate_limit": {"interval": 0, "burst": 20}}).rate_limit is None
    assert loaded({"rate_limit": {"interval": "1h1m30.5s", "burst": 2}}).rate_limit is not None


def test_a_token_bucket_fills_again() -> None:
    bucket = RateLimit(0.05, 3)
    assert [bucket.allows() for _ in range(3)] == [True] * 3
    wait_until(bucket.allows, "a token comes back")


# TLS


def test_tls(start_exporter: StartExporter, certificates: Certificates) -> None:
    web = write(certificates.folder, with_tls())
    exporter = start_exporter("--collectors", "memory", "--web-config", str(web), tls=certificates.client())
    assert exporter.url.startswith("https://")
    assert exporter.scrape().value(MEMORY)
    with socket.create_connection(address(exporter)) as plain:
        plain.sendall(GET)
        assert b"this port speaks HTTPS" in plain.makefile("rb").read()
    no_trust = ssl.create_default_context()
    with pytest.raises(ssl.SSLCertVerificationError):
        RawClient(exporter, no_trust)
    client = RawClient(exporter, certificates.client())
    for _ in range(3):
        answer = client.ask(GET)
        assert answer is not None
        assert answer.status == 200
    dropped = exporter.scrape().value("trainvitals_exporter_connections_dropped_total", reason="handshake")
    assert dropped == 2


def test_half_open_handshakes(start_exporter: StartExporter, certificates: Certificates) -> None:
    web = write(certificates.folder, with_tls())
    exporter = start_exporter("--collectors", "memory", "--web-config", str(web), tls=certificates.client())
    attackers = []
    for number in range(2 * server.MAX_CONNECTIONS):
        attackers.append(socket.create_connection(address(exporter)))
        if number % 2:
            attackers[-1].sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a ClientHello
    for _ in range(20):
        assert exporter.scrape().value(MEMORY)
    for attacker in attackers:
        attacker.close()


def test_tls_versions_ciphers_curves(certificates: Certificates, start_exporter: StartExporter) -> None:
    suites = ["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"]
    asked = {"max_version": "TLS12", "cipher_suites": suites, "curve_preferences": ["CurveP384"]}
    web = write(certificates.folder, with_tls(**asked))
    exporter = start_exporter("--collectors", "memory", "--web-config", str(web), tls=certificates.client())
    assert tls_of(exporter, certificates.client())[:2] == ("TLSv1.2", "ECDHE-ECDSA-CHACHA20-POLY1305")
    write(certificates.folder, with_tls(**asked, prefer_server_cipher_suites=False))
    assert tls_of(exporter, certificates.client())[:2] == ("TLSv1.2", "ECDHE-ECDSA-AES256-GCM-SHA384")
    weak = certificates.client()
    weak.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    with pytest.raises(ssl.SSLError):
        RawClient(exporter, weak)
    other_curve = certificates.client()
    other_curve.set_ecdh_curve("prime256v1")
    with pytest.raises(ssl.SSLError):
        RawClient(exporter, other_curve)
    write(certificates.folder, with_tls(min_version="TLS13"))
    assert tls_of(exporter, certificates.client())[0] == "TLSv1.3"


def test_inline_certificates(certificates: Certificates, start_exporter: StartExporter) -> None:
    certificates.issue("client", "prometheus")
    content = {
        "tls_server_config": {
            "cert": certificates.text("server.crt"),
            "key": certificates.text("server.key"),
            "client_ca": certificates.text("ca.crt"),
            "client_auth_type": "RequireAndVerifyClientCert",
        }
    }
    web = write(certificates.folder, content)
    certificates.folder.joinpath("server.crt").unlink()
    exporter = start_exporter("--collectors", "memory", "--web-config", str(web), tls=certificates.client("client"))
    assert exporter.scrape().value(MEMORY)


def forged_client(certificates: Certificates, folder: Path) -> ssl.SSLContext:
    """A client that trusts the exporter, with a certificate that somebody else has issued."""
    (folder / "forged").mkdir()
    forger = Certificates(folder / "forged", trustme.CA())
    forger.issue("client", "prometheus.example")
    client = certificates.client()
    client.load_cert_chain(forger.folder / "client.crt", forger.folder / "client.key")
    return client


def test_client_certificates(start_exporter: StartExporter, certificates: Certificates, tmp_path: Path) -> None:
    certificates.issue("client", "prometheus.example", "2001:db8::1")
    certificates.issue("stranger", "elsewhere.example")
    web = write(certificates.folder, with_tls(**VERIFIED))
    exporter = start_exporter("--collectors", "memory", "--web-config", str(web), tls=certificates.client("client"))
    assert exporter.scrape().value(MEMORY)
    assert is_served(exporter, certificates.client("stranger"))
    assert not is_served(exporter, certificates.client())
    assert not is_served(exporter, forged_client(certificates, tmp_path))

    write(certificates.folder, with_tls(**VERIFIED, client_allowed_sans=["2001:DB8:0::1"]))
    assert is_served(exporter, certificates.client("client"))
    assert not is_served(exporter, certificates.client("stranger"))
    write(certificates.folder, with_tls(**VERIFIED, client_allowed_sans=["elsewhere.example"]))
    assert is_served(exporter, certificates.client("stranger"))
    assert not is_served(exporter, certificates.client("client"))


def test_certificates_only_if_given(start_exporter: StartExporter, certificates: Certificates, tmp_path: Path) -> None:
    certificates.issue("client", "prometheus.example")
    web = write(certificates.folder, with_tls(client_auth_type="VerifyClientCertIfGiven", **CA))
    exporter = start_exporter("--collectors", "memory", "--web-config", str(web), tls=certificates.client())
    assert is_served(exporter, certificates.client())
    assert is_served(exporter, certificates.client("client"))
    assert not is_served(exporter, forged_client(certificates, tmp_path))


def tls_of(exporter: ExporterProcess, context: ssl.SSLContext) -> tuple[str | None, str, int]:
    """Version, cipher and serial number of the certificate that a client is given."""
    connection = RawClient(exporter, context).socket
    assert isinstance(connection, ssl.SSLSocket)
    cipher, certificate = connection.cipher(), connection.getpeercert()
    assert cipher
    assert certificate
    return connection.version(), cipher[0], int(str(certificate["serialNumber"]), 16)


def is_served(exporter: ExporterProcess, context: ssl.SSLContext) -> bool:
    """With TLS 1.3 a client learns after the handshake only that its certificate was refused."""
    try:
        answer = RawClient(exporter, context).ask(GET)
    except OSError:
        return False
    return answer is not None and answer.status == 200


# Users, headers, limits


def users(**passwords: str) -> dict[str, Any]:
    return {"basic_auth_users": passwords}


def test_users(start_exporter: StartExporter, tmp_path: Path) -> None:
    web = write(tmp_path, users(alice=HASH, ünal=HASH.replace("$2b$", "$2y$")))
    exporter = start_exporter("--collectors", "memory", "--web-config", str(web))
    status, headers, body = exporter.get()
    assert (status, headers["WWW-Authenticate"]) == (401, 'Basic realm="trainvitals", charset="UTF-8"')
    assert MEMORY.encode() not in body
    refused = [
        basic("alice", "wrong"), basic("bob", "secret"), basic("", "secret"), basic("alice", ""), "Basic", "Basic ????",
        "Basic " + base64.b64encode(b"alice").decode(), "Bearer secret", basic("alice", "secret\0"),
        basic("a" * 9999, ""), basic("alicesecret", ""), basic("", "alicesecret"),
    ]  # fmt: skip
    for _ in range(2):
        assert [exporter.get(Authorization=text)[0] for text in refused] == [401] * len(refused)
        assert exporter.get(Authorization=basic("alice", "secret"))[0] == 200
        assert exporter.get(Authorization=basic("ünal", "secret").replace("Basic", "basic "))[0] == 200
    assert exporter.get("/")[0] == exporter.get("/nowhere")[0] == 401
    assert exporter.get("/-/healthy")[0] == exporter.get("/-/ready")[0] == 200
    assert exporter.get(method="HEAD")[0] == 401


def test_a_password_is_hashed_once(start_exporter: StartExporter, tmp_path: Path) -> None:
    """And as long for who does not exist as for who does."""
    web = write(tmp_path, users(alice=bcrypt.hashpw(b"secret", bcrypt.gensalt(10)).decode(), bob=HASH))
    exporter = start_exporter("--collectors", "memory", "--web-config", str(web))

    def cpu_of(name: str, password: str, count: int, status: int) -> float:
        before = cpu_seconds(exporter)
        for _ in range(count):
            assert exporter.get(Authorization=basic(name, password))[0] == status
        return cpu_seconds(exporter) - before

    known, unknown = cpu_of("alice", "wrong", 10, 401), cpu_of("carol", "wrong", 10, 401)
    assert 0.5 < known / unknown < 2
    assert cpu_of("alice", "secret", 1, 200) > known / 20
    assert cpu_of("alice", "secret", 10, 200) < known / 2


def cpu_seconds(exporter: ExporterProcess) -> float:
    return time.clock_gettime((~exporter.process.pid << 3) | 2)  # Linux's way to name another process's CPU clock


def test_guessing_passwords_keeps_nobody_out(start_exporter: StartExporter, tmp_path: Path) -> None:
    web = write(tmp_path, users(alice=bcrypt.hashpw(b"secret", bcrypt.gensalt(11)).decode()))
    exporter = start_exporter("--collectors", "memory", "--web-config", str(web))
    assert exporter.get(Authorization=basic("alice", "secret"))[0] == 200
    wrong = f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: {basic('alice', 'guess')}\r\n\r\n".encode()
    guessers = [RawClient(exporter) for _ in range(100)]
    for guesser in guessers:
        guesser.send(wrong)
    for _ in range(20):
        assert exporter.get(Authorization=basic("alice", "secret"))[0] == 200
    statuses = [answer.status for guesser in guessers if (answer := guesser.answer())]
    assert set(statuses) == {401, 503}


def test_headers_and_rate_limit(start_exporter: StartExporter, tmp_path: Path) -> None:
    chosen = {
        "Content-Security-Policy": "default-src 'none'",
        "Strict-Transport-Security": "max-age=3600",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "deny",
        "X-XSS-Protection": "0",
    }
    limited = {"rate_limit": {"interval": "1h", "burst": 3}, "http_server_config": {"http2": False, "headers": chosen}}
    exporter = start_exporter("--collectors", "memory", "--web-config", str(write(tmp_path, limited)))
    for path, status in (("/metrics", 200), ("/nowhere", 404), ("/", 200), ("/metrics", 429), ("/-/ready", 200)):
        found, headers, _ = exporter.get(path)
        assert found == status
        assert chosen.items() <= headers.items()


# Changes while running


def test_reloading_users(start_exporter: StartExporter, tmp_path: Path) -> None:
    web = write(tmp_path, users(alice=HASH))
    exporter = start_exporter("--collectors", "memory", "--web-config", str(web))
    alice, bob = basic("alice", "secret"), basic("bob", "secret")

    def count(result: str, user: str) -> float:
        body = exporter.get(Authorization=user)[2].decode()
        [line] = [line for line in body.splitlines() if line.startswith(f'{RELOADS}{{result="{result}"}}')]
        return float(line.split()[-1])

    assert exporter.get(Authorization=alice)[0] == 200
    write(tmp_path, users(bob=HASH))
    assert (exporter.get(Authorization=bob)[0], exporter.get(Authorization=alice)[0]) == (200, 401)
    assert (count("success", bob), count("failure", bob)) == (1, 0)

    bad: list[tuple[Callable[[], object], str]] = [
        (lambda: write(tmp_path, users(alice="secret")), "no bcrypt hash"),
        (lambda: write(tmp_path, "basic_auth_users: {"), "is not YAML"),
        (lambda: write(tmp_path, ""), "would switch off users, which takes a restart"),
        (web.unlink, "No such file"),
    ]
    for number, (spoil, said) in enumerate(bad, 1):
        spoil()
        for _ in range(3):
            assert (exporter.get(Authorization=bob)[0], exporter.get(Authorization=alice)[0]) == (200, 401)
        assert count("failure", bob) == number
        kept = wait_until(partial(logged, exporter, "still counts", number), "the log says so")
        assert len(kept) == number
        assert said in kept[-1]

    write(tmp_path, users(alice=HASH))
    assert (exporter.get(Authorization=bob)[0], exporter.get(Authorization=alice)[0]) == (401, 200)
    assert (count("success", alice), count("failure", alice)) == (2, 4)
    wait_until(lambda: logged(exporter, "was read again", 2), "the log says so")


def test_no_text_ever_ends_what_counted_before(start_exporter: StartExporter, tmp_path: Path) -> None:
    """Every kind of bad file, one after the other, under a running exporter."""
    web = write(tmp_path, users(alice=HASH))
    exporter = start_exporter("--collectors", "memory", "--web-config", str(web))
    alice = basic("alice", "secret")
    # Those that name their files are those of other tests.
    bad = [content for content, _ in BAD if isinstance(content, str) or "tls_server_config" not in str(content)]
    for content in bad:
        write(tmp_path, content)
        assert (exporter.get(Authorization=alice)[0], exporter.get()[0]) == (200, 401)
    failures = float(
        next(
            line.rpartition(" ")[2]
            for line in exporter.get(Authorization=alice)[2].decode().splitlines()
            if line.startswith(f'{RELOADS}{{result="failure"}}')
        )
    )
    assert failures > len(bad) / 2  # two files may be bad for the same reason
    wait_until(partial(logged, exporter, "still counts", int(failures)), "the log says so")
    assert len(exporter.log) == failures + 1
    write(tmp_path, users(bob=HASH))
    assert (exporter.get(Authorization=alice)[0], exporter.get(Authorization=basic("bob", "secret"))[0]) == (401, 200)


def logged(exporter: ExporterProcess, text: str, count: int = 0) -> list[str]:
    """The log's lines with that text; none if there are fewer than `count`."""
    lines = [line for line in exporter.log if text in line]
    return lines if len(lines) >= count else []


def test_rotating_certificates(start_exporter: StartExporter, certificates: Certificates) -> None:
    """As Kubernetes does it: the folder behind a symlink is another one from now on."""
    folder = certificates.folder
    (folder / "first").mkdir()
    for file in ("server.crt", "server.key"):
        (folder / file).rename(folder / "first" / file)
    (folder / "data").symlink_to("first")
    web = write(folder, with_tls(cert_file="data/server.crt", key_file="data/server.key"))
    exporter = start_exporter("--collectors", "memory", "--web-config", str(web), tls=certificates.client())
    first = tls_of(exporter, certificates.client())[2]
    open_connection = RawClient(exporter, certificates.client())

    (folder / "second").mkdir()
    Certificates(folder / "second", certificates.authority).issue("server", "127.0.0.1")
    (folder / "new").symlink_to("second")
    (folder / "new").replace(folder / "data")
    second = tls_of(exporter, certificates.client())[2]
    assert second != first
    answer = open_connection.ask(GET)
    assert answer is not None
    assert answer.status == 200

    # One file after the other: until both are there, the old pair is used.
    Certificates(folder, certificates.authority).issue("third", "127.0.0.1")
    (folder / "third.crt").replace(folder / "data" / "server.crt")
    assert tls_of(exporter, certificates.client())[2] == second
    (folder / "third.key").replace(folder / "data" / "server.key")
    assert tls_of(exporter, certificates.client())[2] not in (first, second)
    assert "they do not belong together" in logged(exporter, "still counts", 1)[0]


def test_a_certificate_that_comes_late(start_exporter: StartExporter, certificates: Certificates) -> None:
    """It is found although nothing changes in what was in use until then."""
    web = write(certificates.folder, with_tls())
    exporter = start_exporter("--collectors", "memory", "--web-config", str(web), tls=certificates.client())
    first = tls_of(exporter, certificates.client())[2]
    write(certificates.folder, with_tls(cert_file="late.crt", key_file="late.key"))
    assert tls_of(exporter, certificates.client())[2] == first
    certificates.issue("late", "127.0.0.1")
    wait_until(lambda: tls_of(exporter, certificates.client())[2] != first, "the new certificate is used")


def test_protection_is_not_lost_while_running(start_exporter: StartExporter, certificates: Certificates) -> None:
    """Not even for the moment in which a file is half written."""
    certificates.issue("client", "prometheus")
    whole = yaml.safe_dump({**with_tls(**VERIFIED, client_allowed_sans=["prometheus"]), **users(alice=HASH)})
    web = write(certificates.folder, whole)
    exporter = start_exporter("--collectors", "memory", "--web-config", str(web), tls=certificates.client("client"))
    for end in range(0, len(whole), 7):
        web.write_text(whole[:end])
        assert not is_served(exporter, certificates.client("client"))  # no password
        assert not is_served(exporter, certificates.client())
    assert exporter.get(Authorization=basic("alice", "secret"))[0] == 200
