"""Ranks as a company: they meet before anything is built, agree, and hear of each other's end."""
