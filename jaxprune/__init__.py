"""Prune neural networks in JAX: masks are pytrees, pruning is an optax transform."""

from jaxprune._criteria import magnitude as magnitude
from jaxprune._criteria import random as random
from jaxprune._criteria import saliency as saliency
from jaxprune._distributions import erdos_renyi as erdos_renyi
from jaxprune._distributions import erdos_renyi_kernel as erdos_renyi_kernel
from jaxprune._distributions import uniform as uniform
from jaxprune._dropout import adjust_dropout as adjust_dropout
from jaxprune._dropout import dropout_rate as dropout_rate
from jaxprune._masks import apply_mask as apply_mask
from jaxprune._masks import check_mask as check_mask
from jaxprune._masks import dense_mask as dense_mask
from jaxprune._masks import map_masked as map_masked
from jaxprune._masks import mask_from_zeros as mask_from_zeros
from jaxprune._masks import sparsity as sparsity
from jaxprune._moments import reset_moments as reset_moments
from jaxprune._penalty import l1 as l1
from jaxprune._penalty import l2 as l2
from jaxprune._points import Point as Point
from jaxprune._prune import PruneState as PruneState
from jaxprune._prune import prune as prune
from jaxprune._prune import prune_now as prune_now
from jaxprune._quality import to_quality as to_quality
from jaxprune._refine import refine as refine
from jaxprune._schedules import every as every
from jaxprune._schedules import hold as hold
from jaxprune._schedules import once as once
from jaxprune._schedules import then as then
from jaxprune._scope import where as where
from jaxprune._sensitivity import Curve as Curve
from jaxprune._sensitivity import Scan as Scan
from jaxprune._sensitivity import sensitivity_scan as sensitivity_scan
from jaxprune._solve import Costs as Costs
from jaxprune._solve import Solution as Solution
from jaxprune._solve import solve as solve
from jaxprune._summary import LayerReport as LayerReport
from jaxprune._summary import describe as describe
from jaxprune._summary import get_mask as get_mask
from jaxprune._summary import summarize as summarize
from jaxprune._summary import verify as verify
from jaxprune._thresholds import by_std as by_std
from jaxprune._thresholds import layer_std as layer_std
from jaxprune._thresholds import to_sparsity as to_sparsity
from jaxprune._types import Criterion as Criterion
from jaxprune._types import Mask as Mask
from jaxprune._types import MaskSchedule as MaskSchedule
from jaxprune._types import Params as Params
from jaxprune._types import Scores as Scores
from jaxprune._types import Step as Step
from jaxprune.compress._save import load as load
from jaxprune.compress._save import save as save


__version__ = "0.1.0"
