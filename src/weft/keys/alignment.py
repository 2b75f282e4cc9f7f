"""Keys of alignment: what is learnt from preferences."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class AlignmentKeys(BaseModel):
    """Alignment."""

    loss: Literal["dpo", "ipo", "simpo", "orpo", "kto", "robust_dpo"] = Field(
        "dpo", description="how `weft dpo` learns from preferences"
    )
    dpo_beta: float = Field(0.1, gt=0, description="beta of DPO and its family")
    label_smoothing: float = Field(0.1, ge=0, lt=0.5, description="share of wrong labels that robust_dpo expects")
    simpo_gamma: float = Field(0.5, ge=0, description="margin of SimPO")
