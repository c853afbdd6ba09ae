"""`make demo`: hospitals train one model together on this machine, from the study's draft to the checked proof."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from demo import synthetic
from demo.network import Network, StudyStopped
from demo.people import PageError
from demo.plan import demo_plan
from demo.portal import ROOT
from demo.processes import ProcessFailed, call
from demo.progress import Progress
from demo.settings import SettingError, Settings, hospitals_in, read, silo_name
from demo.study import draft
from demo.summary import summary

FOLDER = ROOT / "var" / "demo"
MIN_PATIENTS = 10
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def main() -> int:
    """Exit code 0 when the study completed and its log was verified; 1 with a sentence otherwise; 130 after Ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return run(read())
    except (SettingError, ProcessFailed, StudyStopped, PageError) as error:
        console.print(f"The demo ends: {error}", style="bold red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("\nEnded on request; nothing is left running.")
        return 130


def run(settings: Settings) -> int:
    began = time.monotonic()
    folders = hospitals_in(settings.data) if settings.data else None
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    if folders is None:
        console.print("Drawing chest pictures as DICOM for four hospitals (DATA=folder takes real ones) ...")
        folders = {path.name: path for path in synthetic.write(FOLDER / "data", seed=settings.seed)}
    plan = demo_plan(max_rounds=settings.rounds, seed=settings.seed)
    network = Network(
        FOLDER,
        {silo_name(name): path for name, path in folders.items()},
        port=settings.port,
        min_cohort=MIN_PATIENTS,
        networks=(plan["network"]["name"],),
        say=lambda text: console.print(f"  {text}"),
    )
    try:
        console.print(f"A portal and {len(folders)} hospitals are starting ...")
        network.start()
        _print_accounts(network)
        study = network.submit(
            draft(
                silos=[hospital.name for hospital in network.hospitals],
                plan=plan,
                modalities=_modalities(folders),
                countries=[hospital.country for hospital in network.hospitals],
                title="One finding on images of several hospitals",
                summary="A small network learns to tell images with the finding from images without it.",
                min_patients=MIN_PATIENTS,
            )
        )
        network.approve_in_portal(study)
        declined = network.hospitals_decide(study)
        for name, why in declined.items():
            console.print(f"  {name} declines: {why}", markup=False)
        if len(network.hospitals) - len(declined) < 3:
            raise StudyStopped(
                f"only {len(network.hospitals) - len(declined)} hospitals can take part; a study needs three"
            )
        console.print("  the hospitals signed their approvals at their own nodes; rounds begin")
        with Progress(console, settings.rounds) as progress:
            report = network.wait_for(
                study,
                lambda found: found["state"] == "completed",
                seconds=60 + settings.rounds * 600,
                each=progress.show,
            )
        result = _finish(network, report, folders, time.monotonic() - began)
        if not settings.exit_at_end:
            _stay_open(network, study)
        return 0 if result["evidence"]["verified"] else 1
    finally:
        network.stop()


def _finish(network: Network, report: dict[str, Any], folders: Mapping[str, Path], elapsed: float) -> dict[str, Any]:
    """Exports the log as an auditor would, checks it with the verifier command, writes and prints the summary."""
    entries, verified = verify_log(network)
    result = summary(report, hospitals=network.hospitals, entries=entries, verified=verified, elapsed=elapsed)
    names = {silo_name(folder): folder for folder in folders}
    result["auc"]["per_silo"] = {names[silo]: value for silo, value in result["auc"]["per_silo"].items()}
    (FOLDER / "summary.json").write_text(json.dumps(result, indent=2) + "\n")
    _print_result(result)
    return result


def verify_log(network: Network) -> tuple[int, bool]:
    """(entries, whether all is in order): the auditor's export, checked offline by `consilium-verify`."""
    archive = FOLDER / "export.zip"
    archive.write_bytes(
        network.person("auditor").submit("/evidence/verify/", {}, to="/evidence/verify/export.zip").content
    )
    export = FOLDER / "export"
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(FOLDER)
    (FOLDER / "consilium-log").rename(export)
    command = [sys.executable, "-m", "protocol.transparency.verify", str(export), "--json"]
    code, output = call(command, env={"PYTHONPATH": str(ROOT)}, cwd=FOLDER, ok=(0, 1))
    found = json.loads(output.splitlines()[-1]) if code == 0 else {}
    if code:
        console.print(output, markup=False)
    return int(found.get("entries", 0)), code == 0


def _modalities(folders: Mapping[str, Path]) -> list[str]:
    """The DICOM modalities of the data, as a researcher would know them from the hospitals: up to 20 files of each are asked."""
    import pydicom

    found = set()
    for folder in folders.values():
        for path in [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".csv"][:20]:
            try:
                header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Modality"])
            except (pydicom.errors.InvalidDicomError, OSError):
                continue  # the hospital's own scan reports it
            found.add(str(header.get("Modality", "")))
    found.discard("")
    if not found:
        raise SettingError("No DICOM file with a modality was found in DATA.")
    return sorted(found)


def _print_accounts(network: Network) -> None:
    table = Table(title=f"Watch in the browser: {network.portal.address}", title_justify="left")
    for column in ("role", "user", "password", "second factor (TOTP seed)"):
        table.add_column(column, no_wrap=column != "role")
    for account in network.accounts.values():
        table.add_row(account.role, account.username, account.password, account.totp_seed or "none")
    console.print(table)


def _print_result(result: Mapping[str, Any]) -> None:
    table = Table(title="What came out", title_justify="left", show_header=False)
    mean = result["auc"]["mean"]
    table.add_row("mean AUC on held-out patients", "none" if mean is None else f"{mean:.3f}")
    for name, value in result["auc"]["per_silo"].items():
        table.add_row(f"  {name}", "not computable or not shared" if value is None else f"{value:.3f}")
    table.add_row("training rounds", str(result["rounds"]))
    table.add_row("round overhead, median", f"{result['round_overhead_seconds']['median']:.2f} s")
    table.add_row("sent by a hospital in a round", f"{result['bytes_up_per_silo_per_round'] / 1000:,.0f} kB")
    table.add_row(
        "log",
        f"{result['evidence']['entries']} entries, {'verified' if result['evidence']['verified'] else 'NOT VERIFIED'}",
    )
    table.add_row("time", f"{result['seconds']:.0f} s")
    console.print(table)
    console.print(
        f"Written to {FOLDER.relative_to(ROOT)}/summary.json; the exported log is in {FOLDER.relative_to(ROOT)}/export."
    )


def _stay_open(network: Network, study: str) -> None:
    _print_accounts(network)
    table = Table(title="Each hospital's own page (user it)", title_justify="left")
    for column in ("hospital", "address", "password"):
        table.add_column(column, no_wrap=True)
    for hospital in network.hospitals:
        table.add_row(hospital.name, *hospital.open_page())
    console.print(table)
    console.print(f"The study: {network.portal.address}/studies/{study}/   Ctrl-C ends everything.")
    while True:
        network.check()
        time.sleep(1)


def _interrupt(number: int, frame: types.FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
