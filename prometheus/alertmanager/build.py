"""Writes Alertmanager's configurations, one per language and channel, and its message templates, from source/.

Run it with ``make channels`` after a change; what it writes is committed. Route, grouping and inhibition stand in
source/common.yml, receivers in source/channels/, what messages look like in source/*.tmpl, words in source/en.yml and
source/zh.yml.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

FOLDER: Final = Path(__file__).parent
SOURCE: Final = FOLDER / "source"
LANGUAGES: Final = ("en", "zh")
CHANNELS: Final = tuple(sorted(path.stem for path in (SOURCE / "channels").glob("*.yml")))


@dataclass(frozen=True)
class Format:
    """How messages are written in one markup: a template action is put in the place of {}.

    `full` alerts are told in full and as many as make ten in a line each; `longest` characters of a description are
    told at most, as templates cut no more than 1000; None: all. Where messages have a title, it names the first alert.
    """

    escape: str
    bold: tuple[str, str]
    newline: str
    link: str
    between_links: str
    full: int
    longest: int | None
    titled: bool = False


_NEWLINE: Final = '{{ "\\n" }}'  # the end of a line in the source is none in the message
_URL: Final = '{{{{ reReplaceAll "[)]" "%29" ({url}) }}}}'
# Of WeCom 4096 bytes are taken, of Telegram 4096 characters, of a description in Discord as many.
FORMATS: Final = {
    "text": Format("{}", ("", ""), _NEWLINE, "{word}: {{{{ {url} }}}}", _NEWLINE, 3, 900),
    "telegram": Format("{}", ("<b>", "</b>"), _NEWLINE, '<a href="{{{{ {url} }}}}">{word}</a>', " · ", 2, 400),
    "email": Format("{}", ("<b>", "</b>"), f"<br>{_NEWLINE}", '<a href="{{{{ {url} }}}}">{word}</a>', " · ", 10, None),
    "slack": Format(
        'reReplaceAll ">" "&gt;" (reReplaceAll "<" "&lt;" (reReplaceAll "&" "&amp;" ({})))',
        ("*", "*"), _NEWLINE, '<{{{{ reReplaceAll "[|>]" "" ({url}) }}}}|{word}>', " · ", 3, 900, titled=True,
    ),
    "discord": Format(
        r'reReplaceAll "([\\\\*_~`|<>#\\[\\]])" "\\${{1}}" ({})',
        ("**", "**"), _NEWLINE, f"[{{word}}]({_URL})", " · ", 2, 600, titled=True,
    ),
    # Two spaces before a newline make DingTalk show it.
    "robot": Format(
        'reReplaceAll ">" "＞" (reReplaceAll "<" "＜" (reReplaceAll "[*]" "＊" ({})))',  # noqa: RUF001
        ("**", "**"), f"  {_NEWLINE}", f"[{{word}}]({_URL})", " · ", 1, 600,
    ),
}  # fmt: skip
# Alertmanager reads the text of a payload as YAML, and sends something else where that is more than a string. A text
# whose first line begins like ours and has no colon at the end of a word is a string or no YAML, and is left as it is.
_ONE_WORD: Final = r'reReplaceAll ":(\\s|$)" "${{1}}" ({})'
# For titles, which are the same in all markups.
_PLAIN: Final = _ONE_WORD.format(r'reReplaceAll "[<>*`\\[\\]\\s]+" " " ({})').replace("${1}", "${{1}}")
_IS: Final = (
    '(or (eq .Labels.severity {0}) (and (eq {0} "") (not (match "^(critical|warning|info)$" .Labels.severity))))'
)


def build() -> dict[Path, str]:
    """The content of each file that is written, by its path below this folder."""
    files = {}
    for language in LANGUAGES:
        said = yaml.safe_load((SOURCE / f"{language}.yml").read_text(encoding="utf-8"))
        files[Path("templates", f"{language}.tmpl")] = _templates(said["words"], said.get("alerts", {}))
        for channel in CHANNELS:
            files[Path(language, f"{channel}.yml")] = _configuration(language, channel)
    return files


def _configuration(language: str, channel: str) -> str:
    common = (SOURCE / "common.yml").read_text(encoding="utf-8")
    receiver = (SOURCE / "channels" / f"{channel}.yml").read_text(encoding="utf-8")
    return common.replace("@channel@", channel).replace("@language@", language) + receiver


def _templates(words: Mapping[str, str], alerts: Mapping[str, list[str]]) -> str:
    source = (SOURCE / "common.tmpl").read_text(encoding="utf-8")
    parts = ["{{/* Written by build.py from source/; see docs/alerting.md. */}}"]
    parts.append(_defined(_worded(source, words)))
    parts.append(_defined("define trainvitals.summary\n" + _choice(alerts, 0, _filled(_PLAIN, _SUMMARY))))
    if alerts:
        parts.append(_defined("define trainvitals.action\n" + _choice(alerts, 1, words["see"])))
    message = (SOURCE / "message.tmpl").read_text(encoding="utf-8")
    for name, style in FORMATS.items():
        parts.append(_defined(_worded(_styled(message, name, style, words, translated=bool(alerts)), words)))
    return "\n".join(parts)


_SUMMARY: Final = "or .Annotations.summary .Labels.alertname"


def _choice(alerts: Mapping[str, list[str]], place: int, otherwise: str) -> str:
    """What is said of the alert of this name, in the table's column `place`."""
    branches = [f'{{{{ if eq .Labels.alertname "{name}" }}}}{said[place]}' for name, said in alerts.items()]
    chain = "\n{{ else }}".join(branches).replace("{{ else }}{{ if", "{{ else if")
    return f"{chain}\n{{{{ else }}}}{otherwise}\n{{{{ end }}}}" if branches else otherwise


def _filled(pattern: str, value: str) -> str:
    return f"{{{{ {pattern.format(value)} }}}}"


def _worded(text: str, words: Mapping[str, str]) -> str:
    text = re.sub(r"@is\((.*?)\)@", lambda found: _IS.format(found[1]), text)
    text = re.sub(r"@plain\((.*?)\)@", lambda found: _filled(_PLAIN, found[1]), text)
    return re.sub(r"@word\.([\w-]+)@", lambda found: words[found[1]], text)


def _styled(text: str, name: str, style: Format, words: Mapping[str, str], *, translated: bool) -> str:
    def text_of(found: re.Match[str]) -> str:
        cut = f'reReplaceAll "(?s)^(.{{{style.longest}}}).+$" "${{1}}…" ({found[1]})'
        return f"{{{{ {style.escape.format(cut if style.longest else found[1])} }}}}"

    opening, closing = style.bold
    action = '@word.action@{{ template "trainvitals.action" . }}@br@' if translated else ""
    replaced: dict[str, Any] = {
        "@action@": action, "@format@": name, "@full@": style.full, "@between@": style.between_links,
        "@b@": opening, "@/b@": closing,
        "@unless-title@": "{{ if $shown }}" if style.titled else "", "@end@": "{{ end }}" if style.titled else "",
    }  # fmt: skip
    for mark, value in replaced.items():
        text = text.replace(mark, str(value))
    text = re.sub(r"@esc\((.*?)\)@", lambda found: _filled(style.escape, _ONE_WORD.format(found[1])), text)
    text = re.sub(r"@text\((.*?)\)@", text_of, text)
    text = re.sub(
        r"@link\(word\.(\w+), (.*?)\)@", lambda found: style.link.format(word=words[found[1]], url=found[2]), text
    )
    return text.replace("@br@", style.newline)


def _defined(text: str) -> str:
    """What follows lines `define NAME`, as templates; the end of a source line is not part of what is written."""
    written = []
    for definition in re.split("^(?=define )", text, flags=re.MULTILINE)[1:]:
        first, *lines = filter(None, definition.splitlines())
        name = first.removeprefix("define ")
        body = "{{/*\n*/}}".join(lines)
        written.append(f'{{{{ define "{name}" }}}}{{{{/*\n*/}}}}{body}{{{{/*\n*/}}}}{{{{ end }}}}\n')
    return "\n".join(written)


def main() -> None:
    """Write all files, and say so."""
    for path, text in build().items():
        (FOLDER / path).parent.mkdir(exist_ok=True)
        (FOLDER / path).write_text(text, encoding="utf-8")
    print(f"wrote {len(LANGUAGES)} x {len(CHANNELS)} configurations and {len(LANGUAGES)} files of templates")


if __name__ == "__main__":
    main()
