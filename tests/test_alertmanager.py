"""Alertmanager's configurations, on real ones: who is told what, in which shape, and who is silent meanwhile."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from examples.demo.programs import free_ports
from tests.alert_channels import FOLDER, Chat, Running, alert, chat, configuration, labelled, running
from tests.conftest import newer_tool, tool, wait_until

REPOSITORY = Path(__file__).parents[1]
LANGUAGES = ("en", "zh")
CHANNELS = (
    "none", "webhook", "email", "slack", "discord", "telegram", "pagerduty", "wecom", "dingtalk", "feishu",
)  # fmt: skip
ZH: dict[str, Any] = yaml.safe_load((FOLDER / "source" / "zh.yml").read_text(encoding="utf-8"))
RULES: list[dict[str, Any]] = [
    rule
    for file in sorted((REPOSITORY / "prometheus" / "rules").glob("*.yml"))
    for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule["annotations"]["summary"] for rule in RULES if "alert" in rule}


def oldest() -> str:
    """The distribution's Alertmanager, 0.25 or newer."""
    return tool("alertmanager", "prometheus-alertmanager")


def newest() -> str:
    return newer_tool("prometheus-alertmanager")


# ---- the files


def test_the_files_are_those_of_their_source() -> None:
    spec = importlib.util.spec_from_file_location("build_channels", FOLDER / "build.py")
    assert spec
    assert spec.loader
    build = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = build  # dataclasses look there
    spec.loader.exec_module(build)
    files = {path: (FOLDER / path).read_text(encoding="utf-8") for path in build.build()}
    assert files == build.build(), "run: make channels"
    assert {path.parts for path in files} == {
        *itertools.product(LANGUAGES, (f"{channel}.yml" for channel in CHANNELS)),
        *(("templates", f"{language}.tmpl") for language in LANGUAGES),
    }


def test_all_channels_share_route_grouping_and_inhibition() -> None:
    seen = set()
    for language, channel in itertools.product(LANGUAGES, CHANNELS):
        content = yaml.safe_load((FOLDER / language / f"{channel}.yml").read_text(encoding="utf-8"))
        names = [receiver["name"] for receiver in content["receivers"]]
        assert names == ["nobody", "watchdog", "default"]
        seen.add(json.dumps([content["route"], content["inhibit_rules"]]))
    assert len(seen) == 1


def test_no_secret_is_written_in_a_configuration() -> None:
    for channel in CHANNELS:
        text = (FOLDER / "en" / f"{channel}.yml").read_text(encoding="utf-8")
        assert not re.findall(
            r"^\s+(?:url|api_url|webhook_url|bot_token|routing_key|auth_password):", text, re.MULTILINE
        )


@pytest.mark.parametrize("channel", [channel for channel in CHANNELS if channel != "email"])
def test_amtool_accepts(channel: str) -> None:
    files = [FOLDER / language / f"{channel}.yml" for language in LANGUAGES]
    done = subprocess.run([newer_tool("amtool"), "check-config", *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", ["smarthost", "from", "to"])
def test_an_unedited_mail_address_is_refused_at_the_start(line: str, tmp_path: Path) -> None:
    filled = {name: (f'{name}: ""', f"{name}: x@example.org") for name in ("from", "to")}
    filled["smarthost"] = ('smarthost: ""', "smarthost: mail:25")
    file = configuration(tmp_path, "en", "email", [edit for name, edit in filled.items() if name != line])
    done = subprocess.run([tool("amtool"), "check-config", file], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(rf"(?i)\b{line}\b", done.stdout + done.stderr), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (["alertname=TrainingRunFailed", "severity=critical", "run=s2"], "default"),
        (["alertname=TrainingDataStarved", "severity=warning", "run=s2"], "default"),
        (["alertname=TrainingAdviceAmp", "severity=info", "run=s2"], "nobody"),
        (["alertname=Watchdog", "severity=none"], "watchdog"),
    ],
)
def test_alerts_are_routed_to(labels: list[str], receiver: str) -> None:
    file = f"--config.file={FOLDER / 'en' / 'none.yml'}"
    command = [tool("amtool"), "config", "routes", "test", file, f"--verify.receivers={receiver}", *labels]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- the words


def test_every_alert_is_told_in_chinese() -> None:
    known = ZH["alerts"]
    assert set(ALERTS) <= set(known), "add them to prometheus/alertmanager/source/zh.yml and run: make channels"
    for name, said in known.items():
        summary, action = said
        for text in (summary, action):
            assert re.search("[\u4e00-\u9fff]", text), name
            assert not set(text) & set('<>*`[]{}"\\'), f"{name}: these mean something in one of the markups"
        # a message's first line; Alertmanager would read a colon there as YAML
        assert not re.search(r":(\s|$)", summary), name


def test_inhibition_names_alerts_that_exist() -> None:
    content = yaml.safe_load((FOLDER / "en" / "none.yml").read_text(encoding="utf-8"))
    for rule in content["inhibit_rules"]:
        for matcher in rule["source_matchers"] + rule["target_matchers"]:
            name, pattern = re.fullmatch(r'(\w+)(?:=~|!?=)"(.*)"', matcher).groups()  # type: ignore[union-attr]
            if name == "alertname":
                for part in pattern.split("|"):
                    assert any(re.fullmatch(part, known) for known in ZH["alerts"]), part
        # a label that both sides lack would be equal
        asked = [
            {m.split("!=")[0] for m in rule[side] if m.endswith('!=""')}
            for side in ("source_matchers", "target_matchers")
        ]
        assert asked[0] == asked[1]
        assert asked[0] <= set(rule["equal"])
        assert set(rule["equal"]) - asked[0] <= {"instance"}  # which Prometheus gives to whatever it scrapes


def alerts_of(matchers: list[str]) -> set[str]:
    """The known alerts that the matchers name; the severities where they name no alert."""
    ((name, pattern),) = [
        match.groups() for m in matchers if (match := re.fullmatch(r'(alertname|severity)=~?"(.*)"', m))
    ]
    known = ZH["alerts"] if name == "alertname" else ("warning", "info")
    return {each for each in known if re.fullmatch(pattern, each)}


def test_the_page_tells_of_every_inhibition() -> None:
    page = (REPOSITORY / "docs" / "alerting.md").read_text(encoding="utf-8")
    table = page.split("## Who is silent while who speaks")[1].split("\n\n")[1]
    rows = [row.split("|")[1:3] for row in table.splitlines()[2:]]
    rules = yaml.safe_load((FOLDER / "en" / "none.yml").read_text(encoding="utf-8"))["inhibit_rules"]
    told = [[set(re.findall(r"Train\w+|warning|info", cell)) for cell in row] for row in rows]
    assert told == [[alerts_of(rule["source_matchers"]), alerts_of(rule["target_matchers"])] for rule in rules]


def render(language: str, template: str, alerts: list[dict[str, Any]]) -> str:
    """What a template makes of a group of alerts, the way Alertmanager would."""
    now = datetime.now(timezone.utc)
    told = [
        {**each, "status": "resolved" if datetime.fromisoformat(each["endsAt"]) < now else "firing", "fingerprint": ""}
        for each in alerts
    ]
    common = dict(set.intersection(*(set(each["labels"].items()) for each in alerts)))
    data = {"receiver": "default", "status": "firing", "alerts": told, "groupLabels": {}, "commonLabels": common,
            "commonAnnotations": {}, "externalURL": "http://alertmanager"}  # fmt: skip
    kind = "html" if template in ("telegram", "email") else "text"
    done = subprocess.run(
        [newer_tool("amtool"), "template", "render", f"--template.glob={FOLDER}/templates/{language}.tmpl",
         f"--template.type={kind}", f"--template.text={{{{ template \"trainvitals.{template}\" . }}}}",
         "--template.data=/dev/stdin"],
        input=json.dumps(data), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


LIMITS = {"telegram": 4096, "discord": 4096, "robot": 4096, "text": 20000, "slack": 20000}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("template", LIMITS)
def test_the_worst_night_fits_into_a_message(language: str, template: str) -> None:
    severities = ("warning", "info", "critical")
    alerts = [
        alert(
            name,
            severities[i % 3],
            text="A long description with numbers. " * 60,
            run="r" * 40,
            rank=str(i),
            gpu=str(i),
        )
        for i, name in enumerate(ZH["alerts"])
    ]
    alerts += [alert("TrainingLossSpike", "warning", ended=True, run="r" * 40, rank=str(i)) for i in range(20)]
    said = render(language, template, alerts)
    size = len(said.encode()) if template == "robot" else len(said)
    assert size <= LIMITS[template]
    title = render(language, "title", alerts) if template in ("slack", "discord") else ""
    marks = re.findall("[🔴🟠🔵⚪]", title + said)
    assert len(marks) == 10
    assert marks == sorted(marks, key="🔴🟠🔵⚪".index)
    firing = len(ZH["alerts"]) - 10
    assert re.search({"en": rf"{firing} more\b", "zh": f"{firing} 个告警未列出"}[language], said)
    assert re.search({"en": r"20 more no longer firing", "zh": "20 个已不再触发"}[language], said)


def test_a_message_is_what_one_wants_to_read_on_a_phone() -> None:
    failed = alert("TrainingRunFailed", "critical", text="Run s2 failed after 4,210 iterations.", run="s2", rank="1")
    started = datetime.fromisoformat(failed["startsAt"])
    an_hour_before = int(started.timestamp() * 1000) - 3_600_000
    link = f"http://127.0.0.1:3000/d/trainvitals-run?var-run=s2&from={an_hour_before}&to=now"
    assert render("en", "text", [failed]).splitlines() == [
        "🔴 critical · Summary of TrainingRunFailed",
        "Run s2 · rank 1 · gpu-1:10288",
        f"Since {started:%Y-%m-%d %H:%M:%S} UTC",
        "Run s2 failed after 4,210 iterations.",
        "What to do: https://example.org/runbooks/TrainingRunFailed.md",
        f"Dashboard: {link}",
        "",
        "— trainvitals",
    ]
    summary, action = ZH["alerts"]["TrainingRunFailed"]
    assert render("zh", "text", [failed]).splitlines()[:5] == [
        f"🔴 严重 · {summary}",
        "训练 s2 · rank 1 · gpu-1:10288",
        f"开始于 {started:%Y-%m-%d %H:%M:%S} UTC",
        f"{ZH['words']['action']}{action}",
        "Run s2 failed after 4,210 iterations.",
    ]
    assert f'href="{link}"'.replace("&", "&amp;") in render("en", "telegram", [failed])
    assert f"<{link}|Dashboard>" in render("en", "slack", [failed])
    for markdown in ("discord", "robot"):
        assert f"[Dashboard]({link})" in render("en", markdown, [failed])


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("text", "a < b & *c* _d_ [e](f)"),
        ("telegram", "a &lt; b &amp; *c* _d_ [e](f)"),
        ("email", "a &lt; b &amp; *c* _d_ [e](f)"),
        ("slack", "a &lt; b &amp; *c* _d_ [e](f)"),
        ("discord", r"a \< b & \*c\* \_d\_ \[e\](f)"),
        ("robot", "a ＜ b & ＊c＊ _d_ [e](f)"),  # noqa: RUF001
    ],
)
def test_what_an_alert_quotes_is_no_markup(template: str, expected: str) -> None:
    said = render("en", template, [alert("TrainingNonFinite", "critical", text="a < b & *c* _d_ [e](f)", run="s2")])
    assert expected in said


def test_over_is_told_in_a_line() -> None:
    over = alert("TrainingStalled", "critical", ended=True, run="s2")
    at = datetime.fromisoformat(over["endsAt"])
    assert render("en", "text", [over]).splitlines() == [
        f"⚪ no longer firing since {at:%H:%M:%S} UTC · Summary of TrainingStalled · Run s2 · gpu-1:10288",
        "— trainvitals",
    ]
    assert render("en", "title", [over]) == "⚪ no longer firing · Summary of TrainingStalled · s2"


@pytest.mark.parametrize("ended", [False, True], ids=["firing", "over"])
@pytest.mark.parametrize("template", ["title", "text", "robot"])
def test_alertmanager_reads_nothing_into_a_payload(template: str, ended: bool) -> None:
    """It sends a map, a list or a number where a text is one in YAML; all that alerts quote may try."""
    labels = {"run": "a: b", "rank": "- 1", "gpu": "3:", "instance": "[x]: y"}
    mine = labelled("Mine: of an own rule", "warning", labels, ended=ended, text="key: value\n- [a, b]\n# c\n")
    mine["annotations"]["summary"] = "Disk: 3"
    said = render("en", template, [mine])
    with contextlib.suppress(yaml.YAMLError):  # no YAML: it stays as it is
        assert isinstance(yaml.safe_load(said), str)
    assert said.startswith("⚪ no longer" if ended else "**🟠" if template == "robot" else "🟠")


# ---- the channels


SECRETS = {
    "webhook": {"webhook_url": "{}/webhook"},
    "slack": {"slack_url": "{}/slack"},
    "discord": {"discord_url": "{}/discord"},
    "telegram": {"telegram_token": "12345:secret", "telegram_chat_id": "-100200"},
    "pagerduty": {"pagerduty_key": "0123456789abcdef"},
    "wecom": {"wecom_url": "{}/wecom"},
    "dingtalk": {"dingtalk_url": "{}/dingtalk"},
    "feishu": {"feishu_url": "{}/feishu"},
}
PATHS = {"telegram": "/bot12345:secret/sendMessage", "pagerduty": "/pagerduty"}
# How the public address of a channel is replaced by ours.
OVERRIDES = {
    "telegram": ("parse_mode: HTML", "parse_mode: HTML\n        api_url: {}"),
    "pagerduty": ("client: trainvitals", "client: trainvitals\n        url: {}/pagerduty"),
}
SENT = {"telegram": '{"ok": true, "result": {"message_id": 1, "chat": {"id": -100200}}}', "slack": "ok"}


def shape_of_webhook(body: Any) -> str:
    assert body["version"] == "4"
    (told,) = body["alerts"]
    return f"{told['labels']['severity']} {told['annotations']['description']}"


def shape_of_slack(body: Any) -> str:
    (attachment,) = body["attachments"]
    assert attachment["color"] in ("danger", "warning")
    assert attachment["title_link"].startswith("http://127.0.0.1:3000/")
    assert body["username"] == attachment["footer"] == "trainvitals"
    return f"{attachment['title']} {attachment['text']}"


def shape_of_discord(body: Any) -> str:
    (embed,) = body["embeds"]
    return f"{embed['title']} {embed['description']}"


def shape_of_telegram(body: Any) -> str:
    assert (str(body["chat_id"]), body["parse_mode"]) == ("-100200", "HTML")
    return str(body["text"])


def shape_of_pagerduty(body: Any) -> str:
    assert (body["routing_key"], body["event_action"]) == ("0123456789abcdef", "trigger")
    payload = body["payload"]
    assert payload["severity"] in ("critical", "warning")
    assert payload["source"] == "gpu-1:10288"
    return f"{payload['summary']} {payload['custom_details']['firing']}"


def shape_of_robot(body: Any) -> str:
    assert body["msgtype"] == "markdown"
    assert all(isinstance(value, str) for value in body["markdown"].values())
    return " ".join(body["markdown"].values())


def shape_of_wecom(body: Any) -> str:
    assert set(body["markdown"]) == {"content"}
    return shape_of_robot(body)


def shape_of_dingtalk(body: Any) -> str:
    assert set(body["markdown"]) == {"title", "text"}
    return shape_of_robot(body)


def shape_of_feishu(body: Any) -> str:
    assert body["msg_type"] == "text"
    assert isinstance(body["content"]["text"], str)
    return str(body["content"]["text"])


SHAPES = {
    "webhook": shape_of_webhook,
    "slack": shape_of_slack,
    "discord": shape_of_discord,
    "telegram": shape_of_telegram,
    "pagerduty": shape_of_pagerduty,
    "wecom": shape_of_wecom,
    "dingtalk": shape_of_dingtalk,
    "feishu": shape_of_feishu,
}


@pytest.mark.parametrize(
    ("channel", "language"),
    [("webhook", "en"), ("slack", "en"), ("slack", "zh"), ("discord", "en"), ("telegram", "zh"), ("pagerduty", "en"),
     ("pagerduty", "zh"), ("wecom", "zh"), ("dingtalk", "en"), ("feishu", "zh")],
)  # fmt: skip
def test_a_channel_gets_what_it_should_in_the_shape_it_wants(channel: str, language: str, tmp_path: Path) -> None:
    program = oldest() if channel in ("slack", "pagerduty") and language == "en" else newest()
    with chat() as played:
        path = PATHS.get(channel, f"/{channel}")
        played.answers[path] = (202 if channel == "pagerduty" else 200, SENT.get(channel, '{"errcode": 0, "code": 0}'))
        edits = [(old, new.format(played.url)) for old, new in [OVERRIDES.get(channel, ("", ""))] if old]
        secrets = {name: secret.format(played.url) + "\n" for name, secret in SECRETS[channel].items()}
        with running(program, configuration(tmp_path, language, channel, edits), secrets) as manager:
            # what says more to YAML than to people
            words = "key: value\n- [FIRING] {{ .Labels }} # \"x\" 'y'\n---\nnull"
            manager.post(
                alert("TrainingNonFinite", "critical", text=f"Loud. {words}", run="s2: yes"),
                alert("TrainingKlTooLarge", "warning", text=f"Less loud. {words}", run="s2: yes"),
                alert("TrainingAdviceAmp", "info", text="Quiet", run="s9"),
                alert("Watchdog", "none", text="Alive"),
            )
            wait_until(lambda: len(played.at(path)) >= 2, f"two messages to {channel}", 20)
            said = sorted((SHAPES[channel](body) for body in played.at(path)), key=lambda text: "Less" in text)
            assert len(said) == 2, "info and the watchdog are not told to people"
            for text, loudness, severity in zip(said, ("Loud.", "Less loud."), ("critical", "warning"), strict=True):
                assert loudness in text
                assert severity in text or ZH["words"][severity] in text
            if channel not in ("telegram", "discord", "slack"):
                assert "[FIRING] {{ .Labels }} #" in said[0]
            receivers = {a["labels"]["alertname"]: [r["name"] for r in a["receivers"]] for a in manager.alerts()}
            assert receivers["Watchdog"] == ["watchdog"]
            assert receivers["TrainingAdviceAmp"] == ["nobody"]


def test_mail_comes_encrypted_and_with_a_password(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    mails: list[Any] = []
    logins: list[LoginPassword] = []

    class Inbox:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
            mails.append((envelope.rcpt_tos, message_from_bytes(envelope.content, policy=policy.default)))
            return "250 taken"

    def authenticator(server: Any, session: Any, envelope: Any, mechanism: str, login: Any) -> AuthResult:
        logins.append(login)
        return AuthResult(success=True)

    (port,) = free_ports(1)
    server = Controller(
        Inbox(), hostname="127.0.0.1", port=port, tls_context=tls, require_starttls=True, authenticator=authenticator,
        auth_required=True, auth_exclude_mechanism=["LOGIN"],  # whose prompts are spelled in no way that all know
    )  # fmt: skip
    server.start()
    try:
        edits = [
            ('smarthost: ""', f"smarthost: 127.0.0.1:{port}\n        tls_config: {{ca_file: {tmp_path}/ca.pem}}"),
            ('from: ""', "from: trainvitals@example.org"), ('to: ""', "to: you@example.org"),
            ('auth_username: ""', "auth_username: me"),
        ]  # fmt: skip
        file = configuration(tmp_path, "zh", "email", edits)
        with running(oldest(), file, {"smtp_password": "sesame"}) as manager:
            manager.post(alert("TrainingRunFailed", "critical", text="Loud < clear.", run="s2"))
            wait_until(lambda: mails, "the mail", 20)
    finally:
        server.stop()
    ((recipients, mail),) = mails
    summary, action = ZH["alerts"]["TrainingRunFailed"]
    assert recipients == ["you@example.org"]
    assert mail["From"] == "trainvitals@example.org"
    assert mail["Subject"] == f"🔴 严重 · {summary} · s2"
    parts = {part.get_content_type(): part.get_content() for part in mail.walk() if not part.is_multipart()}
    assert f"{ZH['words']['action']}{action}\nLoud < clear." in parts["text/plain"].replace("\r", "")
    assert f"{ZH['words']['action']}{action}<br>\nLoud &lt; clear.<br>" in parts["text/html"].replace("\r", "")
    assert {(login.login, login.password) for login in logins} == {(b"me", b"sesame")}


@pytest.fixture(scope="module")
def webhook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Chat]]:
    work = tmp_path_factory.mktemp("webhook")
    with chat() as played:
        file = configuration(work, "en", "webhook")
        with running(newest(), file, {"webhook_url": f"{played.url}/webhook"}) as manager:
            yield manager, played


def test_all_that_is_wrong_with_a_run_is_one_message(webhook: tuple[Running, Chat]) -> None:
    manager, played = webhook
    manager.post(
        alert("TrainingNonFinite", "critical", run="a", optimizer="0"),
        alert("TrainingNonFinite", "critical", run="a", optimizer="1"),
        alert("TrainingGradientExplosion", "critical", run="a"),
        alert("TrainingNonFinite", "critical", run="b"),
        alert("TrainingNonFinite", "critical", run="a", instance="gpu-2:10288"),
    )

    def groups() -> list[tuple[str, str, int]]:
        told = [body for body in played.at("/webhook") if body["commonLabels"].get("run") in ("a", "b")]
        return sorted((b["groupLabels"]["instance"], b["groupLabels"]["run"], len(b["alerts"])) for b in told)

    wait_until(lambda: len(groups()) == 3, "a message per run and host", 20)
    assert groups() == [("gpu-1:10288", "a", 3), ("gpu-1:10288", "b", 1), ("gpu-2:10288", "a", 1)]


def test_the_watchdog_may_be_given_to_a_dead_mans_switch(tmp_path: Path) -> None:
    file = configuration(tmp_path, "en", "none")
    text, switched_on = re.subn(
        r"(?m)^    # (webhook_configs:|  - url_file:|    send_resolved:)", r"    \1", file.read_text()
    )
    assert switched_on == 3
    file.write_text(text)
    with chat() as played, running(newest(), file, {"watchdog_url": f"{played.url}/switch"}) as manager:
        manager.post(alert("Watchdog", "none"), alert("TrainingRunFailed", "critical", run="s2"))
        wait_until(lambda: played.at("/switch"), "a sign of life", 20)
        assert {each["labels"]["alertname"] for body in played.at("/switch") for each in body["alerts"]} == {"Watchdog"}


def test_the_end_is_told_as_well(webhook: tuple[Running, Chat]) -> None:
    manager, played = webhook
    manager.post(alert("TrainingStalled", "critical", run="back"))
    told = [lambda status=status: [b for b in played.at("/webhook") if b["status"] == status
            and b["commonLabels"].get("run") == "back"] for status in ("firing", "resolved")]  # fmt: skip
    wait_until(told[0], "the alert", 20)
    manager.post(alert("TrainingStalled", "critical", run="back", ended=True))
    wait_until(told[1], "its end", 40)


# ---- who is silent while who speaks

OVER = ("TrainingRunFailed", "TrainingRunOutOfMemory", "TrainingRunVanished")
STUCK = ("TrainingStalled", "TrainingGpuSpinning")
PREDICTED = ("TrainingCudaOutOfMemoryPredicted", "TrainingHostOutOfMemoryPredicted")
SEVERITY = {rule["alert"]: rule["labels"]["severity"] for rule in RULES if "alert" in rule}
# Of those that come later.
SEVERITY |= dict.fromkeys(
    ("TrainingRunOutOfMemory", "TrainingRunVanished", "TrainingGpuSpinning", "TrainingGpuLost", "TrainingGpuXidFatal",
     "TrainingDiskFullSoon", *PREDICTED), "critical",
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Two alerts with their labels, one of which may silence the other."""

    source: str
    target: str
    source_labels: tuple[tuple[str, str], ...] = ()
    target_labels: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        labels = ",".join(f"{k}={v}" for k, v in self.source_labels + self.target_labels)
        return f"{self.source}-{self.target}" + (f"({labels})" if labels else "")


def pairs(sources: tuple[str, ...], targets: tuple[str, ...]) -> list[Pair]:
    return [Pair(source, target) for source in sources for target in targets]


GPU = (("gpu", "3"), ("uuid", "GPU-1"))


def on_gpu(sources: tuple[str, ...], targets: tuple[str, ...]) -> list[Pair]:
    return [Pair(source, target, GPU, GPU) for source in sources for target in targets]


RUN = (("run", "RUN"),)
CPU = (("run", ""), ("collector", "cpu"))
SILENCED = [
    *pairs(OVER + STUCK, ("TrainingCudaMemoryLeak", "TrainingDataStarved", "TrainvitalsHooksFailing")),
    *pairs(OVER + STUCK, ("TrainingAdviceAmp",)),
    *pairs(OVER, STUCK + PREDICTED),
    Pair("TrainingRunOutOfMemory", "TrainingRunFailed"),
    Pair("TrainingGpuSpinning", "TrainingStalled"),
    *pairs(
        ("TrainingCudaOutOfMemoryPredicted",),
        ("TrainingCudaMemoryLeak", "TrainingCudaMemoryLeakSlow", "TrainingCudaMemoryLeakShortRun",
         "TrainingCudaMemoryFragmented"),
    ),
    Pair("TrainingCudaOutOfMemoryPredicted", "TrainingCudaMemoryLeak", (("rank", "0"),), (("rank", "1"),)),
    Pair("TrainingHostOutOfMemoryPredicted", "TrainingHostMemoryLeak"),
    *pairs(("TrainingCudaMemoryLeak",), ("TrainingCudaMemoryLeakSlow", "TrainingCudaMemoryLeakShortRun")),
    Pair("TrainingDiskFullSoon", "TrainingDiskFilling"),
    *pairs(("TrainingDataStarved",), ("TrainingGpuUnderused", "TrainingSpeedDrop")),
    *pairs(
        ("TrainingRankStraggling", "TrainingGpuThrottled", "TrainingCheckpointsTooFrequent", "TrainingCheckpointsSlow"),
        ("TrainingSpeedDrop",),
    ),
    *pairs(("TrainingNonFinite", "TrainingGradientExplosion"), ("TrainingLossSpike", "TrainingLossDiverging")),
    *on_gpu(
        ("TrainingGpuLost", "TrainingGpuXidFatal"),
        ("TrainingGpuXid", "TrainingGpuEccErrors", "TrainingGpuRowsRemapped", "TrainingGpuThrottled",
         "TrainingGpuHeldIdle"),
    ),
    *on_gpu(("TrainingGpuLost",), ("TrainingGpuXidFatal",)),
    Pair("TrainingGpuLost", "TrainvitalsCollectorFailing", GPU, (("run", ""), ("collector", "nvidia"))),
    Pair("TrainingGpuLost", "TrainvitalsCollectorStale", GPU, (("run", ""), ("collector", "nvidia"))),
    Pair("TrainvitalsExporterDown", "TrainingRunVanished", (("run", ""),)),
    Pair("TrainvitalsCollectorFailing", "TrainvitalsCollectorStale", CPU, CPU),
    *pairs(("TrainingDataStarved", "TrainingSpeedDrop"), ("TrainingAdviceWorkers",)),
]  # fmt: skip
TOLD = [
    # what may be the cause of the end
    *pairs(("TrainingRunFailed",), ("TrainingNonFinite", "TrainingGradientExplosion", "TrainingDiskFullSoon")),
    *pairs(OVER[:1], ("TrainingRunOutOfMemory", "TrainingRunVanished")),
    # the other way round
    Pair("TrainingStalled", "TrainingRunFailed"),
    Pair("TrainingStalled", "TrainingGpuSpinning"),
    Pair("TrainingCudaMemoryLeak", "TrainingCudaOutOfMemoryPredicted"),
    Pair("TrainingGpuUnderused", "TrainingDataStarved"),
    Pair("TrainingGpuXid", "TrainingGpuLost", GPU, GPU),
    Pair("TrainingAdviceWorkers", "TrainingDataStarved"),
    # another run, another host, another GPU
    Pair("TrainingRunFailed", "TrainingCudaMemoryLeak", RUN, (("run", "RUN-2"),)),
    Pair("TrainingRunFailed", "TrainingCudaMemoryLeak", RUN, (*RUN, ("instance", "gpu-2:10288"))),
    Pair("TrainingGpuLost", "TrainingGpuXid", GPU, (("gpu", "3"), ("uuid", "GPU-2"))),
    Pair("TrainingGpuLost", "TrainvitalsCollectorFailing", GPU, CPU),
    Pair("TrainvitalsExporterDown", "TrainingRunVanished", (("run", ""),), (*RUN, ("instance", "gpu-2:10288"))),
    Pair(
        "TrainvitalsCollectorFailing", "TrainvitalsCollectorStale", (("collector", "cpu"),), (("collector", "memory"),)
    ),
    # labels that both lack are no common ones
    Pair("TrainingRunFailed", "TrainingGpuEccErrors", RUN, (("run", ""), ("gpu", "3"))),
    Pair("TrainingRunFailed", "TrainvitalsExporterDown", (("run", ""),), (("run", ""),)),
    Pair("TrainingGpuLost", "TrainingGpuThrottled"),
    Pair("TrainvitalsCollectorFailing", "TrainvitalsCollectorStale"),
    Pair("TrainvitalsExporterDown", "TrainingAdviceAmp", (("run", ""),), (("run", ""),)),
]


@pytest.fixture(scope="module")
def suppressed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, bool]]:
    """Whether the target of each pair is silenced; each pair has hosts of its own."""
    work = tmp_path_factory.mktemp("inhibition")
    everything = SILENCED + TOLD
    with running(oldest(), configuration(work, "en", "none")) as manager:
        for number, pair in enumerate(everything):
            for side, name, labels in (("s", pair.source, pair.source_labels), ("t", pair.target, pair.target_labels)):
                given = {"run": "RUN", "instance": "gpu-1:10288", **dict(labels), "case": f"{number}{side}"}
                given["instance"] += f"-{number}"
                given = {key: value for key, value in given.items() if value}
                severity = SEVERITY.get(name, "info" if "Advice" in name or "HeldIdle" in name else "warning")
                manager.post(labelled(name, severity, given))

        def found() -> dict[str, bool] | None:
            states = {a["labels"]["case"]: bool(a["status"]["inhibitedBy"]) for a in manager.alerts()}
            complete = len(states) == 2 * len(everything) and all(states[f"{n}t"] for n in range(len(SILENCED)))
            return states if complete else None

        try:
            states = wait_until(found, "all that is to be silent", 10)
        except pytest.fail.Exception:  # then the tests tell which
            states = {a["labels"]["case"]: bool(a["status"]["inhibitedBy"]) for a in manager.alerts()}
        yield {str(pair): states[f"{number}t"] for number, pair in enumerate(everything)}


@pytest.mark.parametrize("pair", SILENCED, ids=str)
def test_is_silent_while_the_other_speaks(pair: Pair, suppressed: dict[str, bool]) -> None:
    assert suppressed[str(pair)]


@pytest.mark.parametrize("pair", TOLD, ids=str)
def test_is_told_nevertheless(pair: Pair, suppressed: dict[str, bool]) -> None:
    assert not suppressed[str(pair)]


def test_what_is_silent_speaks_once_the_other_is_over(tmp_path: Path) -> None:
    with running(oldest(), configuration(tmp_path, "en", "none")) as manager:

        def silent() -> bool:
            return any(a["status"]["inhibitedBy"] for a in manager.alerts())

        manager.post(alert("TrainingStalled", "critical", run="s2"), alert("TrainingDataStarved", "warning", run="s2"))
        wait_until(silent, "silence", 10)
        manager.post(alert("TrainingStalled", "critical", run="s2", ended=True))
        wait_until(lambda: not silent(), "the end of silence", 10)


# ---- trainvitals stack test-alert

ROBOTS = {
    "feishu": (
        '{"code": 0, "msg": "success"}',
        '{"code": 19024, "msg": "Key Words Not Found"}',
        "19024: Key Words Not Found",
    ),
    "dingtalk": (
        '{"errcode": 0, "errmsg": "ok"}',
        '{"errcode": 310000, "errmsg": "keywords not in content"}',
        "310000",
    ),
    "wecom": (
        '{"errcode": 0, "errmsg": "ok"}',
        '{"errcode": 93000, "errmsg": "invalid webhook url KEYKEYKEY"}',
        "93000",
    ),
}


def run_test_alert(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainvitals.cli", "stack", "test-alert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("channel", ROBOTS)
def test_the_test_hears_what_a_robot_says(channel: str, tmp_path: Path) -> None:
    taken, refused, reason = ROBOTS[channel]
    with chat() as played:
        path = f"/{channel}?key=KEYKEYKEY"
        file = configuration(tmp_path, "zh", channel)
        with running(newest(), file, {f"{channel}_url": played.url + path}) as manager:
            played.answers[path] = (200, taken)
            done = run_test_alert("--alertmanager", manager.url)
            assert (done.returncode, done.stderr) == (0, "")
            assert [line.split()[0] for line in done.stdout.splitlines()] == ["ok", "ok", "ok"]
            through, direct = (json.dumps(body, ensure_ascii=False) for body in played.at(path)[:2])
            assert ZH["alerts"]["TrainvitalsTest"][0] in through
            for body in (through, direct):
                assert "trainvitals" in body, "the keyword that the robot may insist on"
                assert "{{" not in body

            played.answers[path] = (200, refused)
            done = run_test_alert("--alertmanager", manager.url)
            assert done.returncode == 1
            assert f"REFUSED  the robot of {channel}_url: error {reason}" in done.stdout
            assert "KEYKEYKEY" not in done.stdout + done.stderr

            (manager.secrets / f"{channel}_url").unlink()
            done = run_test_alert("--alertmanager", manager.url, "--secrets", tmp_path)
            assert done.returncode == 1
            assert f"{channel}_url cannot be read: No such file or directory" in done.stdout


def test_the_test_finds_secrets_where_the_user_has_them(tmp_path: Path) -> None:
    """Alertmanager in a container reads them elsewhere; here, by a path that only its own folder makes a good one."""
    contained, mine = tmp_path / "alertmanager", tmp_path / "mine"
    contained.write_text(f'#!/bin/sh\ncd {tmp_path} && exec {newest()} "$@"\n')
    contained.chmod(0o755)
    mine.mkdir()
    with chat() as played:
        played.answers["/robot"] = (200, '{"code": 0}')
        file = configuration(tmp_path, "en", "feishu", [(f"{tmp_path}/secrets/", "secrets/")])
        with running(str(contained), file, {"feishu_url": f"{played.url}/robot"}) as manager:
            (mine / "feishu_url").write_text("my-secret-token")
            done = run_test_alert("--alertmanager", manager.url, "--secrets", mine)
            assert done.returncode == 1
            assert f"{mine}/feishu_url does not hold the address" in done.stdout
            assert "my-secret-token" not in done.stdout + done.stderr
            (mine / "feishu_url").write_text(f"{played.url}/robot\n")
            done = run_test_alert("--alertmanager", manager.url, "--secrets", mine)
            assert done.returncode == 0, done.stdout


def test_the_test_sees_what_alertmanager_counts(tmp_path: Path) -> None:
    with chat() as played:
        file = configuration(tmp_path, "en", "slack")
        with running(oldest(), file, {"slack_url": f"{played.url}/slack"}) as manager:
            played.answers["/slack"] = (200, "ok")
            done = run_test_alert("--alertmanager", manager.url)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "ok       slack answered Alertmanager with success" in done.stdout
            played.answers["/slack"] = (403, "invalid_token")
            done = run_test_alert("--alertmanager", manager.url)
            assert done.returncode == 1
            assert "REFUSED  slack did not take what Alertmanager sent" in done.stdout
            (manager.secrets / "slack_url").unlink()
            assert run_test_alert("--alertmanager", manager.url).returncode == 1


def test_the_test_says_when_nobody_would_be_told(tmp_path: Path) -> None:
    with running(oldest(), configuration(tmp_path, "en", "none")) as manager:
        done = run_test_alert("--alertmanager", manager.url)
    assert done.returncode == 1
    assert "REFUSED  Alertmanager tells nobody: its receiver default has no channel" in done.stdout


def test_the_test_says_when_there_is_no_alertmanager() -> None:
    (port,) = free_ports(1)
    done = run_test_alert("--alertmanager", f"http://127.0.0.1:{port}")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(f"REFUSED  no Alertmanager answers at http://127.0.0.1:{port} (")
    with chat() as played:  # some other server
        done = run_test_alert("--alertmanager", played.url)
    assert (done.returncode, done.stderr) == (1, "")
    assert "answers with status 501" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["go"], ["test-alert", "--alertmanager", "9093"], ["test-alert", "--what"]])
def test_usage_errors(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "trainvitals.cli", "stack", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: trainvitals stack" in done.stderr
    assert "Traceback" not in done.stderr
