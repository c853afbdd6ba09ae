"""A hospital: its data folder, its steward's passphrase, and its silo, driven through the `silo` command."""

from __future__ import annotations

import json
import os
import secrets
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.portal import ROOT
from demo.processes import Process, free_port
from demo.silo_command import call_silo

REFUSED = 3  # exit code of `silo` when a rule of the hospital forbids what was asked


@dataclass
class Hospital:
    """One hospital of the network. `name` is also the silo's name; `folder` is what the hospital's IT would look after."""

    name: str
    title: str
    country: str
    folder: Path
    data: Path | None
    portal: str
    extra_env: dict[str, str] = field(default_factory=dict)
    page_port: int = field(default_factory=free_port)
    process: Process | None = None
    fingerprint: str = ""

    @property
    def passphrase_file(self) -> Path:
        return self.folder.parent / f"{self.name}.passphrase"

    @property
    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "SILO_HOME": str(self.folder),
            "SILO_PAGE_PORT": str(self.page_port),
            **self.extra_env,
        }

    def silo(self, *arguments: str) -> str:
        """Runs `silo ...` and returns what it printed."""
        return call_silo(arguments, env=self.env, cwd=ROOT)[1]

    def init(self) -> None:
        """Makes the silo's folder and keys, and the steward's key with a passphrase of its own."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.passphrase_file.touch(mode=0o600)
        self.passphrase_file.write_text(secrets.token_urlsafe(18))
        self.silo(
            *("init", str(self.folder), "--name", self.name, "--portal", self.portal),
            *(("--data", str(self.data)) if self.data else ()),
            *("--steward", f"Steward of {self.title}", "--passphrase-file", str(self.passphrase_file)),
        )

    def enrol(self, token: str) -> None:
        """Shows the silo's keys to the portal; remembers the fingerprint that IT reads out to the admin."""
        self.fingerprint = json.loads(self.silo("enrol", str(self.folder), "--token", token, "--json"))["fingerprint"]

    def scan(self) -> None:
        self.silo("scan", str(self.folder))

    def send_policy(self, policy: dict[str, Any]) -> None:
        """Signs the policy with the steward's key and sends it."""
        file = self.folder / "policy-draft.json"
        file.write_text(json.dumps(policy))
        self.silo(
            "policy", str(self.folder), "--file", str(file), "--passphrase-file", str(self.passphrase_file), "--send"
        )

    def decide(self, study: str, *, reject: str | None = None) -> str | None:
        """Approves the study, or rejects it with a reason. Returns None, or why the hospital's own rules forbid to approve it."""
        arguments = [
            "approve",
            str(self.folder),
            study,
            "--passphrase-file",
            str(self.passphrase_file),
            "--yes",
            "--json",
        ]
        if reject is not None:
            arguments += ["--reject", "--reason", reject]
        code, output = call_silo(arguments, env=self.env, cwd=ROOT, ok=(0, REFUSED))
        return str(json.loads(output)["error"]["sentence"]) if code == REFUSED else None

    def start(self) -> None:
        self.process = Process(
            self.name,
            [sys.executable, "-m", "silo_node.cli", "run", str(self.folder)],
            log=self.folder / "run.log",
            env=self.env,
            cwd=ROOT,
        )

    def open_page(self) -> tuple[str, str]:
        """Lets `it` sign in at the silo's own page; returns its address and the password."""
        self.silo(
            *("page", "user", "add", "it", "--role", "it", "--folder", str(self.folder)),
            *("--password-file", str(self.passphrase_file)),
        )
        return f"http://localhost:{self.page_port}/", self.passphrase_file.read_text()

    def rounds(self) -> list[dict[str, Any]]:
        """The silo's own record of the rounds it took part in (rounds.jsonl)."""
        file = self.folder / "rounds.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
