"""The C-STORE receiver: takes images from known peers into the inbox. `python -m silo_node.pacs.receiver FOLDER`.

| what arrives                                                    | what the peer hears                                         |
|-----------------------------------------------------------------|-------------------------------------------------------------|
| from a host that no peer has                                    | nothing: the connection is closed                           |
| no TLS, where a certificate is set (tls.py)                      | an alert at most; the connection is closed                  |
| wrong calling title for that host, called title                 | the association is rejected                                 |
| another SOP class than an image's                               | the presentation context is rejected                        |
| an image                                                        | 0x0000, after its file has its name                         |
| ... of a patient who opted out, or whose consent permits no use | 0xB006 (warning: elements discarded); nothing of it is kept |
| ... while the disk is full, or list or consents can't be read   | 0xA700 (out of resources): the peer may try later           |
| ... that is not what its command says                           | 0xA900 (does not match)                                     |
| ... without patient, image or readable header                   | 0xC000 (cannot understand)                                  |
| more than `max_mb`                                              | the association is aborted                                  |
| a message that takes longer than `instance_seconds`             | the connection is closed                                    |

Source: DICOM PS3.4, annex B.2.3 (status codes); PS3.8 (associations).
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from pydicom.uid import AllTransferSyntaxes, ExplicitVRLittleEndian, ImplicitVRLittleEndian, PrivateTransferSyntaxes
from pynetdicom import AE, _config, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import _STORAGE_CLASSES, Verification  # type: ignore[attr-defined]
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from silo_node.config import Config, Receiver
from silo_node.errors import DiskFull, SiloError, UsageError
from silo_node.files import write_json
from silo_node.health.status import now_text
from silo_node.pacs.admission import Standing
from silo_node.pacs.book import Book
from silo_node.pacs.errors import InstanceRefused
from silo_node.pacs.inbox import MB, Inbox
from silo_node.pacs.tls import Tls
from silo_node.service import logs

STATUS: Final = {"OPTED_OUT": 0xB006, "NOT_CONSENTED": 0xB006, "PACS_OTHER": 0xA900}
LATER: Final = 0xA700
NOT_UNDERSTOOD: Final = 0xC000
MEMORY: Final = 2**30
CONSENTS_MEMORY: Final = 2 * 2**30
"""Address space of the process, above four times `max_mb`: a peer's lengths are not believed beyond it. More where consents
are read: 100,000 of them take 0.7 GiB."""
_PART: Final = 2**16
"""Bytes read at once."""
_REQUEST: Final = 10.0
_SILENT: Final = 30.0
"""Seconds: from a connection to its request; of silence in an association."""

# Its log lines quote what peers send.
_config.LOG_HANDLER_LEVEL = "none"
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)


class _Connection(AssociationSocket):
    """Ends with a message that takes longer than `seconds`, however steadily it drips in.

    late: takes the association when that happens.
    """

    def __init__(self, *arguments: Any, seconds: float, late: Callable[[Any], None], **named: Any) -> None:
        self._seconds, self._late = seconds, late
        self._until: float | None = None
        super().__init__(*arguments, **named)

    def whole(self) -> None:
        """The next byte begins another message."""
        self._until = None

    def recv(self, nr_bytes: int) -> bytearray:
        """As much, or what came before the peer's end. Raises: TimeoutError, upon which pynetdicom ends the association."""
        if self._until is None:
            self._until = time.monotonic() + self._seconds
        found = bytearray()
        while len(found) < nr_bytes:
            left = self._until - time.monotonic()
            if left <= 0:
                self._late(self.assoc)
                raise TimeoutError
            # None once the association has ended meanwhile.
            connection = self.socket
            if connection is None:
                return found
            # Under TLS one call may wait for a whole record: for no longer than is left.
            connection.settimeout(min(left, _SILENT))
            try:
                part = connection.recv(min(nr_bytes - len(found), _PART))
            except TimeoutError:
                if left <= _SILENT:
                    self._late(self.assoc)
                raise
            if not part:
                break
            found += part
        return found


class _Handler(RequestHandler):
    """As pynetdicom's, with a connection of ours."""

    server: _Listener

    def _create_association(self) -> Any:
        association = super()._create_association()
        # pynetdicom's own has put "there is a connection" on the queue: ours does that again.
        association.dul.event_queue.get_nowait()
        association.dul.socket = _Connection(
            association, client_socket=self.request, seconds=self.server.seconds, late=self.server.late
        )
        return association


class _Listener(ThreadedAssociationServer):
    """Asks `known` before a connection gets a thread, and `tls` in that thread, before a byte of DICOM is read.

    pynetdicom's own TLS shakes hands where it accepts: one silent peer would keep all others waiting, and strangers would
    come before the question who they are.
    """

    daemon_threads = True
    """The end does not wait for a handshake."""

    def __init__(
        self,
        *arguments: Any,
        known: Callable[[socket.socket, tuple[Any, ...]], bool],
        tls: Tls | None,
        seconds: float,
        late: Callable[[Any], None],
        **named: Any,
    ) -> None:
        self._known, self._tls = known, tls
        self.seconds, self.late = seconds, late
        super().__init__(*arguments, request_handler=_Handler, **named)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """In the thread that accepts."""
        return self._known(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread."""
        if self._tls is not None:
            request = self._tls.secured(request, _plain(client_address[0]))
        if request is not None:
            # Else half a PDU, and then nothing, would keep a thread for ever.
            request.settimeout(_SILENT)
            super().finish_request(request, client_address)


class Server:
    """Listens, in threads of its own, until `stop`. Raises: UsageError (port taken, unknown host, certificate)."""

    def __init__(self, config: Config) -> None:
        settings = config.settings.receiver
        if settings is None:
            raise UsageError("no receiver is set: add a table [receiver] to silo.toml", "NO_RECEIVER")
        self._config, self._settings = config, settings
        self._peers = _addresses(settings)
        self._book = Book(config.pacs_db)
        self._inbox = Inbox(config.inbox, self._book, part="receive", free_mb=settings.free_mb)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._standing = Standing(config)
        self._sizes: dict[int, int] = {}
        self._state = "listening"
        self._tls = Tls(config, settings, self._count) if settings.tls_cert else None
        self._came: dict[int, Counter[str]] = {}
        self._server = self._listen()
        self._write()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.socket.getsockname()[1])

    def stop(self) -> None:
        """Take nothing more; open associations are aborted."""
        self._server.ae.shutdown()
        self._state = "stopped"
        self._write()
        self._book.close()

    def _listen(self) -> ThreadedAssociationServer:
        ae = AE(ae_title=self._settings.ae_title)
        ae.require_called_aet = True
        ae.maximum_associations = self._settings.max_associations
        ae.acse_timeout, ae.dimse_timeout, ae.network_timeout = _REQUEST, _SILENT, _SILENT
        # pynetdicom takes the first of ours that a context offers: of a peer that would convert, the plainest.
        plain = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
        syntaxes = plain + [each for each in AllTransferSyntaxes if each not in {*plain, *PrivateTransferSyntaxes}]
        contexts = [build_context(each, syntaxes) for each in _image_classes()]
        contexts.append(build_context(Verification))
        try:
            server = ae.make_server(
                (self._settings.host, self._settings.port),
                contexts=contexts,
                evt_handlers=[
                    (evt.EVT_REQUESTED, self._requested),
                    (evt.EVT_PDU_RECV, self._arriving),
                    (evt.EVT_DIMSE_RECV, self._arrived),
                    (evt.EVT_CONN_CLOSE, self._closed),
                    (evt.EVT_C_STORE, self._store),
                ],
                server_class=_Listener,
                known=self._known_host,
                tls=self._tls,
                seconds=self._settings.instance_seconds,
                late=self._late,
            )
        except OSError as error:
            raise UsageError(
                f"[receiver] {self._settings.host} port {self._settings.port} can't be listened on ({error.strerror}): "
                "is another program there, or does the address belong to another machine?",
                "RECEIVER_PORT",
            ) from None
        # As AE.start_server does, which takes no class of ours.
        ae._servers.append(server)
        threading.Thread(target=server.serve_forever, name="receiver", daemon=True).start()
        return server

    def _known_host(self, request: socket.socket, address: tuple[Any, ...]) -> bool:
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _plain(address[0]) in {host for _, host in self._peers}

    # --- events; each in the thread of its association ---------------------------------------------------------------

    def _requested(self, event: Any) -> None:
        """Title and host belong together: a known host may not use another peer's title."""
        primitive = event.assoc.requestor.primitive
        caller = (str(primitive.calling_ae_title).strip(), _plain(event.assoc.requestor.address))
        if caller not in self._peers:
            self._count("rejected", event.assoc)
            event.assoc.acse.send_reject(0x01, 0x01, 0x03)  # permanent, by the user, calling title not recognised
            event.assoc.kill()  # waits until that is sent

    def _arriving(self, event: Any) -> None:
        """Counts a message's bytes while it arrives: pynetdicom hands it over only when it is whole."""
        if event.pdu.pdu_type != 0x04:
            event.assoc.dul.socket.whole()
            return
        key, most = id(event.assoc), self._settings.max_mb * MB
        before = self._sizes.get(key, 0)
        self._sizes[key] = before + event.pdu.pdu_length
        if before <= most < self._sizes[key]:
            self._count("INSTANCE_TOO_BIG", event.assoc)
            event.assoc.abort()

    def _arrived(self, event: Any) -> None:
        """In the thread that reads, before it reads on."""
        self._sizes.pop(id(event.assoc), None)
        event.assoc.dul.socket.whole()

    def _late(self, association: Any) -> None:
        self._count("PACS_SLOW", association)

    def _closed(self, event: Any) -> None:
        self._sizes.pop(id(event.assoc), None)
        with self._lock:
            came = self._came.pop(id(event.assoc), None)
        if came:
            logs.get().info("receiver.association", counts=dict(came))
        if event.assoc.requestor.primitive is None:
            # pynetdicom would wait for a request on the closed connection, as one of the few associations allowed.
            event.assoc.dul.to_user_queue.put(None)

    def _store(self, event: Any) -> int:
        """One instance. Returns the DICOM status."""
        try:
            request = event.request
            size = request.DataSet.getbuffer().nbytes
            self._inbox.room_for(size)
            with self._inbox.writing() as (file, path):
                file.write(event.encoded_dataset())
                file.flush()
                self._inbox.take(path, sop=str(request.AffectedSOPInstanceUID), against=self._standing.against)
        except InstanceRefused as error:
            self._count(error.code, event.assoc)
            return STATUS.get(error.code, NOT_UNDERSTOOD)
        except (SiloError, OSError) as error:
            code = error.code if isinstance(error, SiloError) else "RECEIVER_FAILED"
            self._count(code, event.assoc)
            logs.get().error("receiver.refused", code=code, error_at=error)
            return LATER
        self._count("received", event.assoc)
        return 0x0000

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _count(self, what: str, association: Any = None) -> None:
        """association: None for a connection that did not become one."""
        with self._lock:
            self._counts[what] += 1
            if association is not None:
                self._came.setdefault(id(association), Counter())[what] += 1
        self._write()

    def _write(self) -> None:
        """Counts for `silo status`."""
        # Without room the images that are refused for it say so.
        with self._lock, contextlib.suppress(DiskFull):
            value = {
                "state": self._state,
                "pid": os.getpid(),
                "port": self._settings.port,
                "counts": dict(self._counts),
            }
            write_json(self._config.folder / "receiver.json", value, sync=False)


def _plain(address: str) -> str:
    """An IPv4 address that came through an IPv6 socket, as such."""
    return address.removeprefix("::ffff:")


def _addresses(settings: Receiver) -> frozenset[tuple[str, str]]:
    """(AE title, IP address) of each peer, names looked up once."""
    found = set()
    for peer in settings.peers:
        try:
            answers = socket.getaddrinfo(peer.host, None, type=socket.SOCK_STREAM)
        except OSError:
            raise UsageError(f"[receiver] peers: the host {peer.host} is not known here") from None
        found |= {(peer.ae_title, str(answer[4][0])) for answer in answers}
    return frozenset(found)


def _image_classes() -> Iterable[str]:
    return [uid for name, uid in _STORAGE_CLASSES.items() if "ImageStorage" in name]


def serve(config: Config) -> None:
    """Until SIGTERM or Ctrl-C. Raises: SiloError, which stands in receiver.json too."""
    stop = threading.Event()
    try:
        server = Server(config)
    except SiloError as error:
        logs.get().error("receiver.failed", code=error.code, sentence=error.sentence)
        failed = {"state": "failed", "time": now_text(), "code": error.code, "sentence": error.sentence}
        write_json(config.folder / "receiver.json", failed)
        raise
    settings = config.settings.receiver
    assert settings is not None
    most = MEMORY + 4 * settings.max_mb * MB
    if config.settings.consent.source or config.consent_path is not None:
        most += CONSENTS_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    logs.get().info("receiver.listening", port=server.port)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    server.stop()
    logs.get().info("receiver.stopped")


def main(folder: str) -> int:
    """As a process of `silo run`; the exit code."""
    config = Config.load(Path(folder))
    logs.configure(config.folder, config.name)
    try:
        serve(config)
    except SiloError as error:
        sys.stderr.write(f"{error.code}: {error.sentence}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
