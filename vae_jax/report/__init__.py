"""What a person sees: pictures as PNG, and one self-contained page. Drawing wants the extra `report` (matplotlib)."""
