"""Small forms of the study pages; the two large ones are in study_form.py and policy_form.py."""

import json
from typing import Any

from django import forms

from governance.models import Review
from protocol import canonical
from protocol.canonical import CanonicalError


class ReasonForm(forms.Form):
    """An act that needs a reason in words."""

    reason = forms.CharField(
        max_length=2000,
        widget=forms.Textarea(attrs={"rows": 4}),
        help_text="Hospitals and auditors read it. No names of patients or colleagues.",
    )


class ReviewForm(ReasonForm):
    """The network's decision. `manifest` is the digest of the version that was read."""

    decision = forms.ChoiceField(choices=Review.Decision.choices, widget=forms.HiddenInput)
    manifest = forms.CharField(max_length=71, widget=forms.HiddenInput)


class StudyJsonForm(forms.Form):
    """A draft as its JSON."""

    document = forms.CharField(
        label="The draft as JSON",
        max_length=1_000_000,
        widget=forms.Textarea(attrs={"class": "code", "spellcheck": "false", "autocapitalize": "off"}),
        help_text="A manifest without schema, study, log and witnesses; participants are {silo, weight}.",
    )

    def clean_document(self) -> dict[str, Any]:
        try:
            found = json.loads(self.cleaned_data["document"])
            # What has no canonical form could never be submitted, and some of it (NaN, lone surrogates, brackets without
            # end) could not even be stored or shown again.
            canonical.encode(found, floats=True)
        except CanonicalError as error:
            raise forms.ValidationError(f"This cannot stand in a study: {error}.") from error
        except RecursionError as error:
            raise forms.ValidationError("This is nested too deep.") from error
        except ValueError as error:
            raise forms.ValidationError(f"This is not JSON: {error}.") from error
        if not isinstance(found, dict):
            raise forms.ValidationError("The draft must be an object in { }.")
        if not isinstance(found.get("title"), str) or not found["title"].strip():
            raise forms.ValidationError("The draft needs a title.")
        return found
