"""Forms about hospitals and silos. The rules are in the services; a form says what it wants and where it goes."""

from typing import Any

from django import forms

from organisations.models import Organisation, Silo


class HospitalForm(forms.Form):
    """Register a hospital."""

    name = forms.CharField(max_length=200, help_text="As it should stand on every page and in every approval.")
    slug = forms.SlugField(
        max_length=60,
        label="Short name",
        help_text="Small letters, digits, hyphens; stands in addresses and in the log.",
    )
    country = forms.CharField(min_length=2, max_length=2, help_text="Two letters (ISO 3166-1), such as DE.")
    contact_email = forms.EmailField(required=False, label="Contact", help_text="Of an office, not of a person.")
    non_profit = forms.BooleanField(
        required=False,
        initial=True,
        label="It is a not-for-profit organisation",
        help_text="Policies may allow only not-for-profit partners.",
    )

    def clean_country(self) -> str:
        return self.cleaned_data["country"].upper()


class InviteForm(forms.Form):
    """Invite a silo of a hospital."""

    organisation = forms.ModelChoiceField(Organisation.objects.all(), to_field_name="slug", label="Hospital")
    name = forms.SlugField(
        max_length=60,
        label="Silo's name",
        help_text="Such as site-1. Every hospital of a study sees it; it cannot be changed later.",
    )


class ConfirmForm(forms.Form):
    """The fingerprint as the hospital reads it out."""

    fingerprint = forms.CharField(
        max_length=200,
        label="Fingerprint, as the hospital reads it to you",
        widget=forms.Textarea(attrs={"rows": 2, "autocomplete": "off", "spellcheck": "false", "class": "mono"}),
        help_text="Sixteen groups of four characters; spaces and capitals do not matter.",
    )


class RevokeForm(forms.Form):
    """Revoking names the silo twice: on the page and by the hand of who does it."""

    reason = forms.CharField(
        max_length=1000,
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text="Auditors read it. It stays outside the log's leaf.",
    )
    name = forms.CharField(
        max_length=60, label="Type the silo's name", widget=forms.TextInput(attrs={"autocomplete": "off"})
    )

    def __init__(self, *args: Any, silo: Silo, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.silo = silo

    def clean_name(self) -> str:
        name = self.cleaned_data["name"].strip()
        if name != self.silo.name:
            raise forms.ValidationError(f"This is not {self.silo.name}. Nothing was revoked.")
        return name
