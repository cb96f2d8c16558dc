"""TLS from the section tls_server_config of the web configuration file, as far as Python's ssl can do it."""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trainvitals_exporter import yaml_files
from trainvitals_exporter.yaml_files import Unusable

_KEYS: Final = (
    "cert", "key", "client_ca", "cert_file", "key_file", "client_ca_file", "client_auth_type", "client_allowed_sans",
    "min_version", "max_version", "cipher_suites", "prefer_server_cipher_suites", "curve_preferences",
)  # fmt: skip
_VERSIONS: Final = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_OLD_VERSIONS: Final = ("TLS10", "TLS11")
_CLIENT_AUTH: Final = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
# The format allows these, too. They accept certificates that nobody signed.
_UNVERIFIED_CLIENT_AUTH: Final = ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert")
# Go's names of the suites of TLS 1.2 that it holds safe, and OpenSSL's names.
_CIPHER_SUITES: Final = {
    f"TLS_ECDHE_{key}_WITH_{suite}": f"ECDHE-{key}-{openssl}"
    for key in ("ECDSA", "RSA")
    for suite, openssl in {
        "AES_128_CBC_SHA": "AES128-SHA",
        "AES_256_CBC_SHA": "AES256-SHA",
        "AES_128_GCM_SHA256": "AES128-GCM-SHA256",
        "AES_256_GCM_SHA384": "AES256-GCM-SHA384",
        "CHACHA20_POLY1305_SHA256": "CHACHA20-POLY1305",
    }.items()
}
_CURVES: Final = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}


@dataclass(frozen=True)
class Tls:
    """TLS as it was asked for; `files` are those it was made from."""

    context: ssl.SSLContext
    client_allowed_sans: frozenset[str]
    files: tuple[Path, ...]

    @property
    def verifies_clients(self) -> bool:
        """Whether nobody gets in without a certificate."""
        return self.context.verify_mode is ssl.CERT_REQUIRED

    def allows(self, connection: ssl.SSLSocket) -> bool:
        """Whether the client's certificate, verified in the handshake, has one of the names that are asked for."""
        if not self.client_allowed_sans:
            return True
        certificate = connection.getpeercert() or {}
        names: Any = certificate.get("subjectAltName", ())
        return any(_spelled(kind, str(name)) in self.client_allowed_sans for kind, name in names)


def create(section: Mapping[str, Any], folder: Path) -> Tls:
    """TLS from the section; paths are relative to `folder`. Raises Unusable."""
    yaml_files.check_keys(section, _KEYS, "tls_server_config.")
    for name in ("cert", "key", "client_ca"):
        if _text(section, name) and _text(section, f"{name}_file"):
            raise Unusable(f"tls_server_config: give {name} or {name}_file, not both")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION  # it costs the server more than the client
    _set_versions(context, section)
    _set_ciphers(context, section)
    _set_curves(context, section)
    certificate, key = _file(section, "cert", folder), _file(section, "key", folder)
    _load_certificate(context, section, certificate, key)
    client_ca = _load_client_authentication(context, section, folder)
    sans = frozenset(_texts(section, "client_allowed_sans"))
    if sans and context.verify_mode is not ssl.CERT_REQUIRED:
        raise Unusable(
            "tls_server_config.client_allowed_sans needs client_auth_type: RequireAndVerifyClientCert; "
            "there may be no certificate to look at otherwise"
        )
    files = tuple(path for path in (certificate, key, client_ca) if path is not None)
    return Tls(context, frozenset(_spelled("", name) for name in sans), files)


def _set_versions(context: ssl.SSLContext, section: Mapping[str, Any]) -> None:
    low, high = _text(section, "min_version") or "TLS12", _text(section, "max_version") or "TLS13"
    for name, text in (("min_version", low), ("max_version", high)):
        if text in _OLD_VERSIONS:
            raise Unusable(f"tls_server_config.{name}: {text} is not safe and not supported; use TLS12 or TLS13")
        if text not in _VERSIONS:
            raise Unusable(f"tls_server_config.{name}: unknown TLS version {text}; there are: TLS12, TLS13")
    context.minimum_version, context.maximum_version = _VERSIONS[low], _VERSIONS[high]
    if context.minimum_version > context.maximum_version:
        raise Unusable("tls_server_config: min_version is above max_version")


def _set_ciphers(context: ssl.SSLContext, section: Mapping[str, Any]) -> None:
    server_chooses = section.get("prefer_server_cipher_suites", True)
    if not isinstance(server_chooses, bool):
        raise Unusable("tls_server_config.prefer_server_cipher_suites: expected true or false")
    if not server_chooses:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    suites = _texts(section, "cipher_suites")
    for suite in suites:
        if suite.startswith("TLS_") and "_WITH_" not in suite:
            raise Unusable(
                f"tls_server_config.cipher_suites: {suite} is one of TLS 1.3, whose suites cannot be chosen; "
                "leave it out, they are always there"
            )
        if suite not in _CIPHER_SUITES:
            known = ", ".join(sorted(_CIPHER_SUITES))
            raise Unusable(f"tls_server_config.cipher_suites: unknown cipher {suite}; there are: {known}")
    if suites:
        try:
            context.set_ciphers(":".join(_CIPHER_SUITES[suite] for suite in suites))
        except ssl.SSLError:
            raise Unusable("tls_server_config.cipher_suites: this machine's OpenSSL has none of them") from None


def _set_curves(context: ssl.SSLContext, section: Mapping[str, Any]) -> None:
    curves = _texts(section, "curve_preferences")
    for curve in curves:
        if curve not in _CURVES:
            known = ", ".join(sorted(_CURVES))
            raise Unusable(f"tls_server_config.curve_preferences: unknown curve {curve}; there are: {known}")
    if len(curves) > 1:
        raise Unusable("tls_server_config.curve_preferences: Python's ssl can be given one curve only, or none")
    if curves:
        try:
            context.set_ecdh_curve(_CURVES[curves[0]])
        except (ValueError, ssl.SSLError):
            raise Unusable(f"tls_server_config.curve_preferences: OpenSSL does not have {curves[0]}") from None


def _load_certificate(
    context: ssl.SSLContext, section: Mapping[str, Any], certificate: Path | None, key: Path | None
) -> None:
    for name, path in (("cert", certificate), ("key", key)):
        if path is None and not section.get(name):
            raise Unusable(f"tls_server_config: one of {name}_file and {name} is needed")
    with _path_of(certificate, section.get("cert")) as cert_path, _path_of(key, section.get("key")) as key_path:
        try:
            context.load_cert_chain(cert_path, key_path, _no_passphrase)
        except ssl.SSLError as error:
            why = "they do not belong together" if error.reason == "KEY_VALUES_MISMATCH" else "not usable as PEM"
            raise Unusable(f"tls_server_config: certificate and key: {why} ({error.reason or error})") from None
        except OSError as error:
            raise Unusable(f"tls_server_config: certificate and key: {error.strerror or error}") from None


def _no_passphrase() -> str:
    """Called for an encrypted key; OpenSSL would ask at the terminal, and wait."""
    raise Unusable("tls_server_config: the key is encrypted; it has to be without a passphrase")


def _load_client_authentication(context: ssl.SSLContext, section: Mapping[str, Any], folder: Path) -> Path | None:
    policy = _text(section, "client_auth_type") or "NoClientCert"
    if policy in _UNVERIFIED_CLIENT_AUTH:
        raise Unusable(
            f"tls_server_config.client_auth_type: {policy} lets anyone in and is not supported; "
            "use RequireAndVerifyClientCert"
        )
    if policy not in _CLIENT_AUTH:
        raise Unusable(f"tls_server_config.client_auth_type: unknown {policy}; there are: {', '.join(_CLIENT_AUTH)}")
    context.verify_mode = _CLIENT_AUTH[policy]
    path, inline = _file(section, "client_ca", folder), section.get("client_ca")
    has_ca = path is not None or bool(inline)
    if has_ca != (context.verify_mode is not ssl.CERT_NONE):
        missing = "client_auth_type" if has_ca else "client_ca_file"
        raise Unusable(f"tls_server_config: {missing} is missing; without it, no client's certificate is verified")
    if has_ca:
        try:
            context.load_verify_locations(cadata=path.read_text() if path else inline)
        except (ssl.SSLError, UnicodeError, TypeError):
            raise Unusable("tls_server_config: the client CA holds no certificate in PEM") from None
        except OSError as error:
            raise Unusable(f"tls_server_config.client_ca_file: {path}: {error.strerror or error}") from None
    return path


def _file(section: Mapping[str, Any], name: str, folder: Path) -> Path | None:
    text = _text(section, f"{name}_file")
    if not text:
        return None
    path = folder / text
    if not path.is_file():
        raise Unusable(f"tls_server_config.{name}_file: {path} is not a file")
    if not os.access(path, os.R_OK):
        raise Unusable(f"tls_server_config.{name}_file: no permission to read {path}")
    return path


@contextmanager
def _path_of(path: Path | None, text: object) -> Iterator[str]:
    """The path of a file; of `text`, that of a file which exists in memory only, for OpenSSL reads keys from files."""
    if path is not None:
        yield str(path)
        return
    descriptor = os.memfd_create("trainvitals")
    try:
        os.write(descriptor, str(text).encode())
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _text(section: Mapping[str, Any], name: str) -> str:
    """A text; "" where there is none."""
    value = section.get(name)
    if value is not None and not isinstance(value, str):
        raise Unusable(f"tls_server_config.{name}: expected text")
    return value or ""


def _texts(section: Mapping[str, Any], name: str) -> list[str]:
    """A list of texts; [] where there is none."""
    values = section.get(name)
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise Unusable(f"tls_server_config.{name}: expected a list of texts")
    return values


def _spelled(kind: str, name: str) -> str:
    """A name of a certificate; IP addresses can be spelled in several ways, and are made alike."""
    if kind in ("", "IP Address"):
        try:
            return str(ipaddress.ip_address(name.strip()))
        except ValueError:
            pass
    return name
