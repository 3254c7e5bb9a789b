"""Networks: temporal-difference fits, and policies of followers and leaders."""
