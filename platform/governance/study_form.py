"""The form of a draft: a study in fields that explain themselves, to and from the shape of a manifest.

The form checks only what it needs to build the draft. What a manifest may hold, the manifest's own schema decides; its
errors are brought back to the field that they belong to (`add_manifest_errors`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from django import forms

from protocol.duo import OBLIGATIONS, TERMS

_KINDS = (
    ("hmb", "health, medical or biomedical research"),
    ("disease", "research on named diseases"),
    ("general", "research of any kind"),
    ("poa", "origins or ancestry of populations"),
)
_LOSSES = (
    ("bce_logit_adjusted", "cross-entropy, adjusted for each hospital's share of positives"),
    ("bce", "cross-entropy"),
)
_OPTIMISERS = (("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD"))
_WINDOWS = (("full", "the whole range of values"), ("dicom", "the display window stored in the image"))
_NETWORKS = tuple(
    (name, name)
    for name in (
        "DenseNet", "DenseNet121", "DenseNet169", "DenseNet201", "EfficientNetBN", "ResNet", "ResNet10", "ResNet18",
        "ResNet34", "ResNet50", "Classifier", "Regressor", "constant",
    )
)  # fmt: skip
_CHECK_WORDS = (
    ("required", "required: a sum that one hospital did not check is thrown away"),
    ("optional", "optional: such a sum stands, unverified"),
)
_AGGREGATION = (
    "min_roster",
    "min_participants",
    "drawn",
    "clip_norm",
    "fraction_bits",
    "error_feedback",
    "sketch",
    "check_words",
)
# Path in the manifest -> the field that a person would change. The longest prefix wins.
_FIELD_OF = {
    "title": "title",
    "summary": "summary",
    "purpose": "kind",
    "purpose.diseases": "diseases",
    "purpose.ethics": "ethics_ref",
    "purpose.ethics.expires": "ethics_expires",
    "purpose.countries": "countries",
    "purpose.accepts": "accepts",
    "cohort.modalities": "modalities",
    "cohort.min_patients": "min_patients",
    "plan.network": "network",
    "plan.network.args": "network_args",
    "plan.input.size": "size",
    "plan.input.channels": "channels",
    "plan.input.window": "window",
    "plan.transforms": "transforms",
    "plan.loss": "loss",
    "plan.optimiser.lr": "lr",
    "plan.optimiser.weight_decay": "weight_decay",
    "plan.optimiser": "optimiser",
    "plan.batch": "batch",
    "plan.local_epochs": "local_epochs",
    "plan.strategy": "server_lr",
    "plan.stopping.max_rounds": "max_rounds",
    "plan.stopping.patience": "patience",
    "plan.stopping.min_delta": "min_delta",
    "plan.stopping.worse_by": "worse_by",
    "plan.evaluation": "bins",
    "plan.initial": "seed",
    "aggregation.min_roster": "min_roster",
    "aggregation.min_participants": "min_participants",
    "aggregation.fraction_bits": "fraction_bits",
    "aggregation.error_feedback": "error_feedback",
    "aggregation.clip_norm": "clip_norm",
    "aggregation.sketch": "sketch",
    "aggregation.check_words": "check_words",
    "aggregation.drawn": "drawn",
    "participants": "silos",
    "limits.round_seconds": "round_seconds",
    "limits.unmask_seconds": "unmask_seconds",
    "dates.start": "start",
    "dates.end": "end",
    "dates": "end",
}


class JsonField(forms.CharField):
    """Text that holds JSON of one type; comes back as the value."""

    widget = forms.Textarea(attrs={"rows": 4, "spellcheck": "false", "autocapitalize": "off"})

    def __init__(self, kind: type, **kwargs: Any) -> None:
        self.kind = kind
        super().__init__(**kwargs)

    def prepare_value(self, value: Any) -> Any:
        return value if isinstance(value, str) or value is None else json.dumps(value)

    def clean(self, value: str) -> Any:
        try:
            found = json.loads(super().clean(value))
        except ValueError as error:
            raise forms.ValidationError(f"This is not JSON: {error}.") from error
        if not isinstance(found, self.kind):
            wanted = "an object in { }" if self.kind is dict else "a list in [ ]"
            raise forms.ValidationError(f"This must be {wanted}.")
        return found


def _day() -> forms.DateInput:
    return forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d")


class StudyForm(forms.Form):
    """A draft. `hospitals`: (silo, label) of the silos that may be asked."""

    title = forms.CharField(max_length=200, help_text="What the study does, in one line; hospitals see it first.")
    summary = forms.CharField(
        max_length=4000,
        required=False,
        widget=forms.Textarea(attrs={"rows": 4}),
        help_text="What the model is to find, in whom, and what for. Stewards without a technical background read this.",
    )
    kind = forms.ChoiceField(
        label="Purpose", choices=_KINDS, help_text="Each hospital's policy is matched against this."
    )
    diseases = forms.CharField(
        required=False,
        help_text="Only for research on named diseases: ids of the Disease Ontology, such as DOID:552, with spaces.",
    )
    methods = forms.BooleanField(
        required=False, label="The study also develops methods", help_text="Some policies forbid it."
    )
    commercial = forms.BooleanField(required=False, label="The result may be used commercially")
    all_non_profit = forms.BooleanField(required=False, label="All partners are not-for-profit")
    genetic = forms.BooleanField(required=False, label="It is a genetic study")
    ethics_ref = forms.CharField(
        required=False, max_length=200, label="Ethics approval", help_text="Its reference, where there is one."
    )
    ethics_expires = forms.DateField(required=False, label="Valid until", widget=_day())
    countries = forms.CharField(
        required=False,
        help_text="Where the data are used: codes such as DE FR. Left out: the hospitals' own countries.",
    )
    accepts = forms.MultipleChoiceField(
        required=False,
        label="Obligations that the study accepts",
        choices=[(term, TERMS[term].meaning) for term in sorted(OBLIGATIONS)],
        widget=forms.CheckboxSelectMultiple,
        help_text="A policy may ask for these; without them it refuses.",
    )
    silos = forms.MultipleChoiceField(
        label="Hospitals to ask",
        widget=forms.CheckboxSelectMultiple,
        help_text="At least three: with fewer, the sum would give a single hospital's update away.",
    )
    weights = forms.CharField(
        required=False,
        help_text="How much a hospital counts in the mean: site-1=2 site-3=4. Left out: 1 each. Fixed once approved.",
    )
    modalities = forms.CharField(help_text="DICOM modalities, with spaces between: CR DX.")
    min_patients = forms.IntegerField(
        min_value=1,
        label="Fewest patients a hospital",
        help_text="A hospital with fewer eligible patients stays out of a round.",
    )
    network = forms.ChoiceField(choices=_NETWORKS, help_text="A network that every hospital allows.")
    network_args = JsonField(
        dict,
        label="Network's settings",
        help_text="Plain values only; text that starts with $ is refused, because it is code to MONAI.",
    )
    size = forms.CharField(label="Image size, pixels", help_text="Height x width: 64 x 64.")
    channels = forms.IntegerField(min_value=1, max_value=16)
    window = forms.ChoiceField(label="Intensities", choices=_WINDOWS)
    transforms = JsonField(
        list,
        label="Variation of training images",
        help_text="A list of {name, args}: RandFlip, RandRotate, RandZoom, RandAffine, RandGaussianNoise and others.",
    )
    loss = forms.ChoiceField(choices=_LOSSES)
    optimiser = forms.ChoiceField(choices=_OPTIMISERS)
    lr = forms.FloatField(label="Learning rate", help_text="Per step.")
    weight_decay = forms.FloatField()
    batch = forms.IntegerField(min_value=1, label="Batch, images")
    local_epochs = forms.IntegerField(min_value=1, label="Passes a round", help_text="Over a hospital's own images.")
    server_lr = forms.FloatField(label="Server step", help_text="1 takes the mean as it is.")
    max_rounds = forms.IntegerField(min_value=1, label="Rounds at most")
    patience = forms.IntegerField(
        min_value=1, required=False, label="Stop after", help_text="Rounds without a gain. Left out: never early."
    )
    min_delta = forms.FloatField(label="A gain is", help_text="In AUC, from 0 to 1.")
    worse_by = forms.FloatField(
        required=False,
        label="Worse is",
        help_text="In AUC: so far below the best model, going back to it is proposed. Left out: never.",
    )
    bins = forms.IntegerField(
        min_value=2, max_value=1024, label="Bins a class", help_text="Of the summed score histograms."
    )
    seed = forms.IntegerField(
        min_value=0, label="Seed of the first model", help_text="Every hospital draws the same model from it."
    )
    min_roster = forms.IntegerField(min_value=3, label="Fewest hospitals at the start of a round")
    min_participants = forms.IntegerField(
        min_value=2, label="Fewest hospitals in a sum", help_text="3 or more is advised."
    )
    clip_norm = forms.FloatField(
        label="Longest update", help_text="L2 norm; a longer one is shortened at the hospital."
    )
    fraction_bits = forms.IntegerField(
        min_value=1,
        max_value=30,
        required=False,
        label="Bits after the point",
        help_text="As many as the sum can hold without overflow. Left out: each layer's scale follows the sum of the round "
        "before, which short words need.",
    )
    error_feedback = forms.BooleanField(
        required=False,
        label="Send later what rounding took",
        help_text="Each hospital keeps what rounding took from its update and adds it to its next one.",
    )
    sketch = forms.BooleanField(
        required=False,
        label="Leave out updates that are out of bounds",
        help_text="Before the masks are taken off, each hospital shows 256 numbers about its update. One that is far too "
        "long, or empty, is left out of the sum.",
    )
    check_words = forms.ChoiceField(
        label="Check words",
        choices=_CHECK_WORDS,
        help_text="One number a hospital, by which all check the published sum. Required is safer; optional keeps a round "
        "when a hospital drops out after its upload, and the sum is then shown as unverified.",
    )
    drawn = forms.IntegerField(
        min_value=3,
        required=False,
        label="Hospitals drawn a round",
        help_text="For training rounds, drawn by a hash that nobody chooses. Left out: all take part.",
    )
    round_seconds = forms.IntegerField(min_value=1, label="Longest round, seconds")
    unmask_seconds = forms.IntegerField(
        min_value=1,
        label="Wait for shares and check words, seconds",
        help_text="How long a hospital that dropped out after its upload is waited for, in each of three steps.",
    )
    start = forms.DateField(label="First day", widget=_day())
    end = forms.DateField(
        label="Last day", widget=_day(), help_text="After it every hospital's node refuses by itself."
    )

    groups = (
        ("What for", ("title", "summary", "kind", "diseases", "methods", "commercial", "all_non_profit", "genetic")),
        ("Who and when", ("silos", "weights", "start", "end", "countries", "ethics_ref", "ethics_expires", "accepts")),
        ("Which images", ("modalities", "min_patients", "size", "channels", "window")),
        (
            "How it is trained",
            ("network", "network_args", "transforms", "loss", "optimiser", "lr", "weight_decay", "batch", "local_epochs",
             "server_lr", "max_rounds", "patience", "min_delta", "worse_by", "bins", "seed"),
        ),
        (
            "How it is protected",
            ("min_roster", "min_participants", "drawn", "clip_norm", "fraction_bits", "error_feedback", "sketch", "check_words",
             "round_seconds", "unmask_seconds"),
        ),
    )  # fmt: skip

    def __init__(
        self, *args: Any, hospitals: Sequence[tuple[str, str]] = (), base: Mapping[str, Any], **kwargs: Any
    ) -> None:
        kwargs.setdefault("initial", fields_of(base))
        super().__init__(*args, **kwargs)
        self.base = base
        self.fields["silos"].choices = list(hospitals)
        initial = base.get("plan", {}).get("initial", {})
        self.pretrained = initial if initial.get("kind") == "pretrained" else None
        if self.pretrained:
            del self.fields["seed"]  # the model is chosen on a page of its own

    def grouped(self) -> list[tuple[str, list[tuple[forms.BoundField, str]]]]:
        """The fields under their headings, each with the answer that it needs ("" for none) to be worth showing."""
        needs = {"diseases": "disease"}
        return [
            (title, [(self[name], needs.get(name, "")) for name in names if name in self.fields])
            for title, names in self.groups
        ]

    def clean_size(self) -> list[int]:
        parts = self.cleaned_data["size"].lower().replace("x", " ").split()
        if len(parts) != 2 or not all(part.isdigit() for part in parts):
            raise forms.ValidationError("Write height and width in pixels, such as 64 x 64.")
        return [int(part) for part in parts]

    def clean_weights(self) -> dict[str, int]:
        found = {}
        for part in self.cleaned_data["weights"].replace(",", " ").split():
            silo, _, weight = part.partition("=")
            if not weight.isdigit() or int(weight) < 1:
                raise forms.ValidationError(f"Write {silo}=2, a whole number from 1 on.")
            found[silo] = int(weight)
        return found

    def clean(self) -> dict[str, Any]:
        data = super().clean()
        strangers = set(data.get("weights") or {}) - set(data.get("silos") or [])
        if strangers:
            self.add_error("weights", f"Not among the hospitals to ask: {', '.join(sorted(strangers))}.")
        if data.get("ethics_ref") and not data.get("ethics_expires"):
            self.add_error("ethics_expires", "Say until which day the ethics approval is valid.")
        if data.get("ethics_expires") and not data.get("ethics_ref"):
            self.add_error("ethics_ref", "Give the reference of the ethics approval.")
        return data

    def draft(self) -> dict[str, Any]:
        """The draft in a manifest's shape; what the form does not show is kept from `base`.

        participants: [{"silo", "weight"}]; their keys and countries are filled in from the silos when it is submitted.
        """
        data = self.cleaned_data
        plan = dict(self.base.get("plan", {}))
        ethics = (
            {"ref": data["ethics_ref"], "expires": data["ethics_expires"].isoformat()} if data["ethics_ref"] else None
        )
        plan |= {
            "network": {"name": data["network"], "args": data["network_args"]},
            "input": {"size": data["size"], "channels": data["channels"], "window": data["window"]},
            "transforms": data["transforms"],
            "loss": data["loss"],
            "optimiser": {"name": data["optimiser"], "lr": data["lr"], "weight_decay": data["weight_decay"]},
            "batch": data["batch"],
            "local_epochs": data["local_epochs"],
            "strategy": {**plan.get("strategy", {"name": "fedavg"}), "server_lr": data["server_lr"]},
            "stopping": {
                "max_rounds": data["max_rounds"],
                "patience": data["patience"],
                "min_delta": data["min_delta"],
                "worse_by": data["worse_by"],
            },
            "evaluation": {"bins": data["bins"]},
            "initial": self.pretrained or {"kind": "seed", "seed": data["seed"]},
        }
        return {
            **self.base,
            "title": data["title"],
            "summary": data["summary"],
            "purpose": {
                "kind": data["kind"],
                "diseases": _words(data["diseases"]),
                "methods": data["methods"],
                "commercial": data["commercial"],
                "all_non_profit": data["all_non_profit"],
                "genetic": data["genetic"],
                "ethics": ethics,
                "countries": [word.upper() for word in _words(data["countries"])],
                "accepts": sorted(data["accepts"]),
            },
            "cohort": {
                "modalities": [word.upper() for word in _words(data["modalities"])],
                "min_patients": data["min_patients"],
            },
            "plan": plan,
            "aggregation": {
                **self.base.get("aggregation", {}),
                **{key: data[key] for key in _AGGREGATION},
            },
            "participants": [{"silo": silo, "weight": data["weights"].get(silo, 1)} for silo in sorted(data["silos"])],
            "limits": {"round_seconds": data["round_seconds"], "unmask_seconds": data["unmask_seconds"]},
            "dates": {"start": data["start"].isoformat(), "end": data["end"].isoformat()},
        }

    def add_manifest_errors(self, problems: Sequence[tuple[str, str]]) -> None:
        """Put (path, sentence) beside the field that it belongs to; what belongs to none goes to the top."""
        for path, sentence in problems:
            name = field_for(path)
            name = name if name in self.fields else None
            self.add_error(name, sentence if name else f"{path}: {sentence}")


def field_for(path: str) -> str | None:
    """The form's field for a path in the manifest, or None."""
    steps = path.split(".")
    for length in range(len(steps), 0, -1):
        name = _FIELD_OF.get(".".join(steps[:length]))
        if name:
            return name
    return None


def fields_of(draft: Mapping[str, Any]) -> dict[str, Any]:
    """Initial values of the form from a draft; parts that it lacks are left empty."""
    purpose, plan = draft.get("purpose", {}), draft.get("plan", {})
    cohort, limits, dates = draft.get("cohort", {}), draft.get("limits", {}), draft.get("dates", {})
    optimiser, stopping, entry = plan.get("optimiser", {}), plan.get("stopping", {}), plan.get("input", {})
    people = draft.get("participants", [])
    found = {
        "title": draft.get("title", ""),
        "summary": draft.get("summary", ""),
        "diseases": " ".join(purpose.get("diseases", [])),
        "countries": " ".join(purpose.get("countries", [])),
        "ethics_ref": (purpose.get("ethics") or {}).get("ref", ""),
        "ethics_expires": (purpose.get("ethics") or {}).get("expires"),
        "silos": [each["silo"] for each in people],
        "weights": " ".join(f"{each['silo']}={each['weight']}" for each in people if each.get("weight", 1) != 1),
        "modalities": " ".join(cohort.get("modalities", [])),
        "min_patients": cohort.get("min_patients"),
        "network": plan.get("network", {}).get("name"),
        "network_args": plan.get("network", {}).get("args", {}),
        "size": " x ".join(str(side) for side in entry.get("size", [])),
        "transforms": plan.get("transforms", []),
        "optimiser": optimiser.get("name"),
        "server_lr": plan.get("strategy", {}).get("server_lr"),
        "bins": plan.get("evaluation", {}).get("bins"),
        "seed": plan.get("initial", {}).get("seed"),
    }
    for part, names in (
        (purpose, ("kind", "methods", "commercial", "all_non_profit", "genetic", "accepts")),
        (plan, ("loss", "batch", "local_epochs")),
        (entry, ("channels", "window")),
        (optimiser, ("lr", "weight_decay")),
        (stopping, ("max_rounds", "patience", "min_delta", "worse_by")),
        (draft.get("aggregation", {}), _AGGREGATION),
        (limits, ("round_seconds", "unmask_seconds")),
        (dates, ("start", "end")),
    ):
        found |= {name: part.get(name) for name in names}
    return found


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(text.replace(",", " ").split()))
