"""What the summed tail says about the model that came into a round."""

from __future__ import annotations

from federation.models import GlobalModel, Round, RoundResult
from protocol.evaluation import Evaluation, auc_from_histograms


def result_keep(item: Round, evaluation: Evaluation) -> RoundResult:
    """Store the evaluation of a round; `model_number` is that of the model that was scored."""
    number = GlobalModel.objects.filter(study=item.study_id, digest=item.model_digest or "").order_by("-number")
    result, _ = RoundResult.objects.update_or_create(
        round=item,
        defaults={
            "model_number": number.values_list("number", flat=True).first() or 0,
            "loss": evaluation.loss_mean,
            "auc_mean": evaluation.auc_mean,
            "auc_std": evaluation.auc_std,
            "auc_pooled": auc_from_histograms(evaluation.histograms),
            "silos_with_auc": evaluation.silos_with_auc,
            "histograms": evaluation.histograms.tolist(),
        },
    )
    return result
