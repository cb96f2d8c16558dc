"""Accepts connections, each with a thread of its own, and keeps their number within bounds."""

from __future__ import annotations

import logging
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any, Final, Protocol

from trainvitals_exporter.endpoint.channel import Channel
from trainvitals_exporter.endpoint.connection import Requests
from trainvitals_exporter.endpoint.web_config import WebConfigFile
from trainvitals_exporter.families import Families, Family

STOP_SIGNALS: Final[frozenset[int]] = frozenset({signal.SIGTERM, signal.SIGINT})
MAX_CONNECTIONS: Final = 128  # a thread and some buffers each; a Prometheus has one, and a host has few of those
MAX_SCRAPES: Final = 8  # being rendered at the same moment; they share one interpreter, and more would not be faster
QUEUE_SECONDS: Final = 5.0  # for a scrape to wait for its turn; half of the time that Prometheus gives it
_DROPPED: Final = ("handshake", "refused", "room", "timeout")
# To find a connection that waits for its client, and for its thread to end; a hundred busy ones slow that down.
_ROOM_SECONDS: Final = 2.0
_MOMENT_SECONDS: Final = 0.01  # in which a thread usually ends
_STOP_SECONDS: Final = 2.0  # for answers under way when the exporter is stopped
_PAUSE_SECONDS: Final = 0.1  # when the system cannot give us another connection

_log = logging.getLogger(__name__)


class Source(Protocol):
    """What is served: trainvitals_exporter.runner.Runner."""

    @property
    def collectors(self) -> Sequence[str]:
        """The names of the collectors at work."""
        ...

    def ready(self) -> bool:
        """Whether a scrape would find all there is."""
        ...

    def render(
        self, content_type: str, names: frozenset[str], collectors: frozenset[str], more: Iterable[Family]
    ) -> bytes:
        """The body of one scrape."""
        ...


@contextmanager
def stop_signals() -> Iterator[socket.socket]:
    """A socket from which signals can be read: one that raised an exception could leave a lock held for ever."""
    reader, writer = socket.socketpair()
    for end in (reader, writer):
        end.setblocking(False)
    with reader, writer:
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda *_: None)
        yield reader
        signal.set_wakeup_fd(-1)


class Server:
    """Serves a runner's metrics on these listening sockets.

    When there are as many connections as may be, a new one takes the place of the one that has kept us waiting for
    longest, those first that have not completed a single request. So idlers and slow writers cost a good client
    nothing. `requests` answers them.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        runner: Source,
        web: WebConfigFile,
        requests: type[Requests] = Requests,
    ) -> None:
        self.runner = runner
        self.web = web
        self._requests = requests
        self._listeners = listeners
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._scrapes = threading.BoundedSemaphore(MAX_SCRAPES)
        self._lock = threading.Lock()
        self._channels: set[Channel] = set()
        self._answers = {int(HTTPStatus.OK): 0}
        self._dropped = dict.fromkeys(_DROPPED, 0)
        self._is_crowded = False
        self._trouble = ""

    def serve(
        self, stop: socket.socket, wake_seconds: float | None = None, on_wake: Callable[[], object] = lambda: None
    ) -> None:
        """Accept connections until `stop` tells of a signal to do so; `on_wake` is called every so often."""
        with selectors.DefaultSelector() as selector:
            selector.register(stop, selectors.EVENT_READ)
            for listener in self._listeners:
                listener.setblocking(False)
                selector.register(listener, selectors.EVENT_READ)
            while True:
                on_wake()
                for key, _ in selector.select(wake_seconds):
                    if key.fileobj is stop:
                        if not STOP_SIGNALS.isdisjoint(stop.recv(64)):
                            return
                        continue
                    self._accept(key.fileobj)  # type: ignore[arg-type]  # what was registered

    def close(self) -> None:
        """Accept nothing more, and give answers that are under way a moment."""
        for listener in self._listeners:
            listener.close()
        deadline = time.monotonic() + _STOP_SECONDS
        while self._channels and time.monotonic() < deadline:
            with self._lock:
                for channel in self._channels:
                    if channel.waiting_since is not None and not channel.is_answering:
                        channel.drop()
            time.sleep(0.01)

    def render(self, content_type: str, names: frozenset[str], collectors: frozenset[str]) -> bytes:
        """The body of one scrape; of all families and collectors where none are named."""
        return self.runner.render(content_type, names, collectors, self._families())

    @contextmanager
    def scrape_slot(self) -> Iterator[bool]:
        """Wait for a turn to render; tells whether it came in time."""
        is_free = self._scrapes.acquire(timeout=QUEUE_SECONDS)
        try:
            yield is_free
        finally:
            if is_free:
                self._scrapes.release()

    def count_answer(self, status: int) -> None:
        """Count an answer."""
        with self._lock:
            self._answers[int(status)] = self._answers.get(int(status), 0) + 1

    def count_dropped(self, reason: str) -> None:
        """Count a connection that was ended by us, not by the client."""
        with self._lock:
            self._dropped[reason] += 1

    def _families(self) -> Families:
        """The endpoint's own metrics."""
        out = Families()
        with self._lock:
            for code, count in self._answers.items():
                out.add("trainvitals_exporter_http_requests_total", count, str(code))
            for reason, count in self._dropped.items():
                out.add("trainvitals_exporter_connections_dropped_total", count, reason)
        for result, count in self.web.reloads.items():
            out.add("trainvitals_exporter_web_config_reloads_total", count, result)
        return out

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, peer = listener.accept()
        except (BlockingIOError, ConnectionError, InterruptedError):
            return  # the client has gone again
        except OSError as error:
            self._report(f"cannot accept connections: {error.strerror}")
            # There may be no descriptors left. A dropped connection gives its own back in a moment.
            time.sleep(_MOMENT_SECONDS if self._drop_longest_waiting() else _PAUSE_SECONDS)
            return
        if self._has_slot():
            self._start(client, peer)
        else:
            self._refuse(client)

    def _has_slot(self) -> bool:
        """Whether there is room for another connection, which may have to be made."""
        if self._slots.acquire(blocking=False):
            self._is_crowded = self._is_crowded and len(self._channels) > MAX_CONNECTIONS // 2
            return True
        if not self._is_crowded:
            self._is_crowded = True
            _log.warning("%d connections are open; each new one ends the one that waits longest", MAX_CONNECTIONS)
        has_dropped, deadline = False, time.monotonic() + _ROOM_SECONDS
        while time.monotonic() < deadline:
            has_dropped = has_dropped or self._drop_longest_waiting()
            if self._slots.acquire(timeout=_MOMENT_SECONDS):
                return True
        return False

    def _drop_longest_waiting(self) -> bool:
        """Whether there was a connection to be dropped."""
        with self._lock:
            waiting = [
                (channel.has_been_answered, since, channel)
                for channel in self._channels
                if (since := channel.waiting_since) is not None
            ]
            if not waiting:
                return False
            victim = min(waiting, key=lambda entry: entry[:2])[2]
            self._channels.discard(victim)
            self._dropped["room"] += 1
        victim.drop()
        return True

    def _refuse(self, client: socket.socket) -> None:
        """Turn a client away at the door; one that speaks TLS sees the connection end."""
        self.count_dropped("refused")
        with suppress(OSError), client:
            client.setblocking(False)
            if self.web.current().tls is None:
                client.send(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
                client.shutdown(socket.SHUT_WR)

    def _start(self, client: socket.socket, peer: Any) -> None:
        channel = Channel(client)
        with self._lock:
            self._channels.add(channel)
        try:
            threading.Thread(target=self._serve, args=(channel, peer), name="connection", daemon=True).start()
        except RuntimeError:  # the system has no thread for it
            self._report("cannot start a thread for another connection")
            self._end(channel)
            client.close()

    def _serve(self, channel: Channel, peer: Any) -> None:
        try:
            self._requests(channel, peer, self)
        except (OSError, ValueError):
            pass  # the client went away in the middle, or was dropped; a closed socket is a ValueError to io
        except Exception as error:
            self._report(f"a request failed: {type(error).__name__}: {error}")
            _log.debug("request of %s", peer, exc_info=True)
        finally:
            self._end(channel)

    def _end(self, channel: Channel) -> None:
        with self._lock:
            self._channels.discard(channel)
        self._slots.release()

    def _report(self, trouble: str) -> None:
        """Log what changed, and only that."""
        if trouble != self._trouble:
            self._trouble = trouble
            _log.warning("%s", trouble)
