"""Pictures, clips and volumes in, feature maps out, and any head on top."""
