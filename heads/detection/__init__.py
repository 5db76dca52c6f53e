"""What detection heads share: targets, matching, losses of all decoder layers, and what was found."""

from heads.detection.head import DetectionConfig, DetectionHead

__all__ = ["DetectionConfig", "DetectionHead"]
