"""The form of a data-use policy. Its result is a document that means nothing until the hospital signs it at its own node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django import forms
from django.utils import timezone

from organisations.models import Silo
from protocol.duo import PERMISSIONS, TERMS, load_closure

_PERMISSION_ORDER = ("DUO:0000042", "DUO:0000006", "DUO:0000007", "DUO:0000011", "DUO:0000004")
# RS, which only a person can judge, comes last.
_MODIFIERS = (*(term for term in sorted(TERMS) if term not in PERMISSIONS and term != "DUO:0000012"), "DUO:0000012")
# Modifier -> (its field in this form, the parameter's name in the policy).
_PARAMETERS = {
    "DUO:0000022": ("only_countries", "countries"),
    "DUO:0000028": ("only_institutions", "institutions"),
    "DUO:0000026": ("only_users", "users"),
    "DUO:0000027": ("only_projects", "projects"),
    "DUO:0000025": ("until", "until"),
    "DUO:0000024": ("moratorium", "until"),
}


def _day() -> forms.DateInput:
    return forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d")


def _label(term: str) -> str:
    return f"{TERMS[term].meaning} ({TERMS[term].label}, {term})"


class PolicyForm(forms.Form):
    """A policy in plain questions. `silos`: those whose policy the person may propose."""

    silo = forms.ModelChoiceField(Silo.objects.none(), to_field_name="name", label="For the silo")
    permission = forms.ChoiceField(
        label="What may the data be used for?",
        choices=[(term, _label(term)) for term in _PERMISSION_ORDER],
        widget=forms.RadioSelect,
    )
    diseases = forms.CharField(
        required=False,
        help_text="Only for research on named diseases. Ids of the Disease Ontology, with spaces between; every kind of "
        "them is allowed too. Known here by name: ",
    )
    modifiers = forms.MultipleChoiceField(
        required=False,
        label="Under which conditions?",
        choices=[(term, _label(term)) for term in _MODIFIERS],
        widget=forms.CheckboxSelectMultiple,
    )
    only_countries = forms.CharField(required=False, label="Only in these countries", help_text="Codes such as DE FR.")
    only_institutions = forms.CharField(
        required=False,
        label="Only by these institutions",
        help_text="Names as in the list of hospitals; one a line.",
        widget=forms.Textarea(attrs={"rows": 2}),
    )
    only_users = forms.CharField(required=False, label="Only by these users", help_text="Ids, with spaces between.")
    only_projects = forms.CharField(required=False, label="Only in these projects", help_text="Study ids: st-...")
    until = forms.DateField(required=False, label="Only until", widget=_day())
    moratorium = forms.DateField(required=False, label="Nothing published before", widget=_day())
    min_cohort = forms.IntegerField(
        required=False,
        min_value=1,
        label="Fewest patients",
        help_text="A study must ask for at least so many a hospital.",
    )
    min_participants = forms.IntegerField(
        required=False,
        min_value=2,
        label="Fewest hospitals in a sum",
        help_text="3 or more keeps your update hidden among others.",
    )
    max_rounds = forms.IntegerField(required=False, min_value=1, label="Rounds at most")
    model_families = forms.CharField(
        required=False, label="Only these networks", help_text="MONAI's names, such as DenseNet ResNet18."
    )
    partner_silos = forms.MultipleChoiceField(
        required=False,
        label="Only together with",
        widget=forms.CheckboxSelectMultiple,
        help_text="None ticked: any hospital of the network.",
    )
    limit_countries = forms.CharField(required=False, label="Only with partners in", help_text="Codes such as DE FR.")
    expires = forms.DateField(required=False, label="This policy ends on", widget=_day())
    epsilon = forms.DecimalField(
        required=False,
        min_value=0,
        max_digits=9,
        decimal_places=6,
        label="Privacy loss at most (epsilon)",
        help_text="With this set, every study without differential privacy is refused.",
    )
    consent_default = forms.ChoiceField(
        label="A patient without a consent record",
        choices=(("opt-in", "does not take part (opt-in)"), ("opt-out", "takes part unless they objected (opt-out)")),
        widget=forms.RadioSelect,
        initial="opt-in",
    )
    legal_basis = forms.CharField(
        required=False,
        max_length=200,
        help_text="Needed for opt-out: the law that allows it, such as a section of a research act.",
    )
    share_metrics = forms.BooleanField(
        required=False,
        label="Show this hospital's own result (AUC) to the study's people",
        help_text="Otherwise only sums over at least three hospitals are seen.",
    )
    pinned = forms.MultipleChoiceField(
        required=False,
        label="Partners whose keys you have compared yourselves",
        widget=forms.CheckboxSelectMultiple,
        help_text="The silo then accepts these partners under exactly these keys, whatever the portal says.",
    )
    min_known = forms.IntegerField(
        min_value=0,
        initial=0,
        label="Fewest such partners in a round",
        help_text="0: the portal's list of keys is enough.",
    )
    log_max_age_hours = forms.IntegerField(
        min_value=1,
        initial=24,
        label="Log's proof at most so old, hours",
        help_text="Older, and the silo refuses the round.",
    )

    groups = (
        ("Use", ("silo", "permission", "diseases")),
        (
            "Conditions",
            ("modifiers", "only_countries", "only_institutions", "only_users", "only_projects", "until", "moratorium"),
        ),
        (
            "Your own limits",
            ("min_cohort", "min_participants", "max_rounds", "model_families", "limit_countries", "expires", "epsilon",
             "partner_silos"),
        ),
        ("Patients and results", ("consent_default", "legal_basis", "share_metrics")),
        ("Trust in partners and in the log", ("pinned", "min_known", "log_max_age_hours")),
    )  # fmt: skip

    def __init__(self, *args: Any, silos: Any, others: Sequence[Silo] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["silo"].queryset = silos
        self.others = {silo.name: silo for silo in others}
        named = [(silo.name, f"{silo.organisation.name} ({silo.name})") for silo in others]
        self.fields["partner_silos"].choices = named
        self.fields["pinned"].choices = named
        known = [f"{label} {disease}" for disease, label in list(load_closure().labels.items())[:8]]
        self.fields["diseases"].help_text += ", ".join(known) + " and others."

    def grouped(self) -> list[tuple[str, list[tuple[forms.BoundField, str]]]]:
        """The fields under their headings, each with the answer that it needs ("" for none) to be worth showing."""
        needs = {field: term for term, (field, _) in _PARAMETERS.items()}
        needs |= {"diseases": "DUO:0000007", "legal_basis": "opt-out"}
        return [(title, [(self[name], needs.get(name, "")) for name in names]) for title, names in self.groups]

    def clean(self) -> dict[str, Any]:
        data = super().clean()
        if data.get("permission") == "DUO:0000007" and not _words(data.get("diseases", "")):
            self.add_error("diseases", "Name at least one disease, or choose another use.")
        for term, (name, _) in _PARAMETERS.items():
            chosen = term in (data.get("modifiers") or [])
            if chosen and not data.get(name):
                self.add_error(
                    name,
                    f'You ticked "{TERMS[term].label}": say which.',
                )
            if data.get(name) and not chosen:
                self.add_error(
                    name,
                    f'This has no effect unless you tick "{TERMS[term].label}" above.',
                )
        if data.get("consent_default") == "opt-out" and not data.get("legal_basis"):
            self.add_error(
                "legal_basis", "Opt-out needs the legal basis that allows it; without one nobody takes part."
            )
        if (data.get("min_known") or 0) > len(data.get("pinned") or []):
            self.add_error("min_known", "More than the partners that you ticked: no round could ever run.")
        return data

    def document(self, *, version: int) -> dict[str, Any]:
        """The policy document of `version`, ready to be signed at the hospital."""
        data = self.cleaned_data
        silo: Silo = data["silo"]
        limits: dict[str, Any] = {
            name: data[name] for name in ("min_cohort", "min_participants", "max_rounds") if data[name] is not None
        }
        for field, name in (("model_families", "model_families"), ("limit_countries", "countries")):
            if _words(data[field]):
                limits[name] = [w.upper() if name == "countries" else w for w in _words(data[field])]
        if data["partner_silos"]:
            limits["partners"] = sorted({*data["partner_silos"], silo.name})
        if data["expires"]:
            limits["expires"] = data["expires"].isoformat()
        if data["epsilon"] is not None:
            limits["epsilon_max_micro"] = int(data["epsilon"] * 1_000_000)
        return {
            "schema": "consilium/policy/1",
            "silo": silo.name,
            "organisation": silo.organisation.name,
            "version": version,
            "permission": data["permission"],
            "modifiers": [{"code": term, **self._parameter(term, data)} for term in data["modifiers"]],
            "diseases": _words(data["diseases"]) if data["permission"] == "DUO:0000007" else [],
            "limits": limits,
            "legal_basis": data["legal_basis"] or None,
            "consent_default": data["consent_default"],
            "share_metrics": data["share_metrics"],
            "partners": {
                "keys": {name: self.others[name].keyid for name in sorted(data["pinned"])},
                "min_known": data["min_known"],
            },
            "log_max_age_seconds": data["log_max_age_hours"] * 3600,
            "issued": timezone.now().strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    def _parameter(self, term: str, data: Mapping[str, Any]) -> dict[str, Any]:
        if term not in _PARAMETERS:
            return {}
        field, name = _PARAMETERS[term]
        value = data[field]
        if name == "until":
            return {name: value.isoformat()}
        if name == "institutions":
            return {name: [line.strip() for line in value.splitlines() if line.strip()]}
        return {name: [word.upper() if name == "countries" else word for word in _words(value)]}


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(text.replace(",", " ").split()))
