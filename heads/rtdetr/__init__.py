"""RT-DETR and D-FINE: detectors of a hybrid encoder over levels and a decoder that refines boxes layer by layer."""

from heads.rtdetr.config import DistributionConfig, RtDetrConfig
from heads.rtdetr.dfine import DFine
from heads.rtdetr.head import RtDetr

__all__ = ["DFine", "DistributionConfig", "RtDetr", "RtDetrConfig"]
