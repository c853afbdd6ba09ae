"""Hospitals for a demo without data: a folder each, of drawn chest pictures as DICOM, with labels.csv.

    FOLDER/site_1/labels.csv        PatientID,SOPInstanceUID,label,finding,split,file
    FOLDER/site_1/dicom/S1-0001/01.dcm

Each hospital has its own maker, contrast, bit depth, shape and transfer syntax. The headers carry invented names, dates
and numbers, as real ones do, so that one can look for them in whatever leaves a hospital. The same seed draws the same
pictures.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from demo import drawing

COLUMNS = ("PatientID", "SOPInstanceUID", "label", "finding", "split", "file")
_TEST_SHARE = 0.25
_MORE_IMAGES = 0.25  # share of patients with a second film
_FAMILY = (
    "Ashgrove",
    "Brindle",
    "Calloway",
    "Dunmere",
    "Eskdale",
    "Farrow",
    "Greyling",
    "Holloway",
    "Inchbald",
    "Jessamy",
)
_GIVEN = ("Aino", "Bram", "Cleo", "Dag", "Edda", "Finn", "Gerda", "Hugo", "Ilse", "Joris")


@dataclass(frozen=True)
class Scanner:
    """How one hospital's pictures are made. `gamma`: contrast; `noise`: grain; `shape`: rows and columns."""

    maker: str
    model: str
    hospital: str
    modality: str
    syntax: uid.UID
    shape: tuple[int, int]
    bits: int
    inverted: bool
    gamma: float
    noise: float
    positives: float


SCANNERS = (
    Scanner("Invented Roentgen AB", "Plate 2", "Northlake General",
            "CR", uid.ExplicitVRLittleEndian, (80, 80), 8, False, 1.0, 0.03, 0.45),
    Scanner("Imaginary Imaging Ltd", "Flat 7", "Saint Orla Hospital",
            "DX", uid.RLELossless, (96, 96), 12, True, 0.75, 0.02, 0.5),
    Scanner("Madeup Medical", "Ray 40", "Juniper Valley Clinic",
            "CR", uid.ImplicitVRLittleEndian, (64, 78), 8, False, 1.3, 0.045, 0.35),
    Scanner("Fictive Systems", "DX One", "Harbour University Hospital",
            "DX", uid.JPEG2000Lossless, (88, 72), 10, False, 0.9, 0.03, 0.6),
    Scanner("Pretend Devices", "Pane", "Moorside Infirmary",
            "CR", uid.DeflatedExplicitVRLittleEndian, (72, 72), 8, True, 1.1, 0.04, 0.4),
)  # fmt: skip


def write(folder: Path, *, hospitals: int = 4, images: int = 150, seed: int = 1) -> list[Path]:
    """Draw `hospitals` sets of about `images` pictures into `folder` (made, must be empty); answers their folders.

    Raises FileExistsError where something is in the folder: pictures are never mixed with others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: choose another folder for the drawn pictures")
    made = []
    for number in range(1, hospitals + 1):
        site = folder / f"site_{number}"
        rng = np.random.default_rng([seed, number])
        _hospital(site, number, SCANNERS[(number - 1) % len(SCANNERS)], images, rng, seed)
        made.append(site)
    return made


def _hospital(site: Path, number: int, scanner: Scanner, images: int, rng: np.random.Generator, seed: int) -> None:
    rows: list[tuple[str, ...]] = []
    patient = 0
    while len(rows) < images:
        patient += 1
        person = _person(number, patient, rng)
        # Every fourth patient: shares of the splits do not depend on luck in a small set.
        split = "test" if patient % round(1 / _TEST_SHARE) == 0 else "train"
        finding = bool(rng.random() < scanner.positives)
        for film in range(1, 2 + int(rng.random() < _MORE_IMAGES)):
            grey = drawing.chest(
                rng, rows=scanner.shape[0], columns=scanner.shape[1], finding=finding, noise=scanner.noise
            )
            dataset = _dataset(scanner, person, film, grey, f"{seed}.{number}.{patient}")
            path = Path("dicom") / person["PatientID"] / f"{film:02d}.dcm"
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            dataset.save_as(site / path, enforce_file_format=True)
            words = "Opacity" if finding else "No finding"
            rows.append((person["PatientID"], dataset.SOPInstanceUID, str(int(finding)), words, split, path.as_posix()))
    with (site / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def _person(number: int, patient: int, rng: np.random.Generator) -> dict[str, str]:
    """Invented identity values of one patient, by DICOM keyword."""
    year, month, day = int(rng.integers(1935, 2005)), int(rng.integers(1, 13)), int(rng.integers(1, 29))
    return {
        "PatientID": f"S{number}-{patient:04d}",
        "PatientName": f"{rng.choice(_FAMILY)}-S{number}-{patient:04d}^{rng.choice(_GIVEN)}",
        "PatientBirthDate": f"{year}{month:02d}{day:02d}",
        "PatientSex": str(rng.choice(["F", "M"])),
        "AccessionNumber": f"A{number}{int(rng.integers(10**6)):06d}",
        "ReferringPhysicianName": f"{rng.choice(_FAMILY)}^{rng.choice(_GIVEN)}",
        "StudyDate": f"2024{int(rng.integers(1, 13)):02d}{int(rng.integers(1, 29)):02d}",
    }


def _dataset(scanner: Scanner, person: dict[str, str], film: int, grey: drawing.Grey, entropy: str) -> Dataset:
    """One film. UIDs are drawn from `entropy`, so that the same seed gives the same files."""
    dataset = Dataset()
    storage = uid.DigitalXRayImageStorageForPresentation
    dataset.SOPClassUID = storage if scanner.modality == "DX" else uid.ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = uid.generate_uid(entropy_srcs=[entropy, f"image {film}"])
    dataset.StudyInstanceUID = uid.generate_uid(entropy_srcs=[entropy, f"study {film}"])
    dataset.SeriesInstanceUID = uid.generate_uid(entropy_srcs=[entropy, f"series {film}"])
    for keyword, value in person.items():
        setattr(dataset, keyword, value)
    dataset.Modality = scanner.modality
    dataset.Manufacturer, dataset.ManufacturerModelName = scanner.maker, scanner.model
    dataset.InstitutionName = scanner.hospital
    dataset.BodyPartExamined, dataset.ViewPosition = "CHEST", "PA"
    dataset.InstanceNumber = film
    top = 2**scanner.bits - 1
    values = np.rint(grey**scanner.gamma * top)
    dtype = np.uint8 if scanner.bits <= 8 else np.uint16
    pixels = (top - values if scanner.inverted else values).astype(dtype)
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME1" if scanner.inverted else "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = pixels.itemsize * 8, scanner.bits, scanner.bits - 1
    dataset.PixelRepresentation = 0
    dataset.WindowCenter, dataset.WindowWidth = (top + 1) / 2, top + 1
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian if scanner.syntax.is_compressed else scanner.syntax
    if scanner.syntax.is_encapsulated:
        dataset.compress(scanner.syntax, generate_instance_uid=False)
    else:
        dataset.file_meta.TransferSyntaxUID = scanner.syntax
    return dataset
