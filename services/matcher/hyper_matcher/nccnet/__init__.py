"""NCCNet: features for template matching, learned without labels (Buniatyan et al., CVC 2019)."""
