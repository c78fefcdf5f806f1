"""EPIC-Kitchens-100, as users have it on disk.

Source: Damen et al., "Rescaling Egocentric Vision" (IJCV 2022), and its annotation repository.
"""
