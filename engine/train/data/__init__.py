"""What a run does about its data: a look before it begins, the whole examination, who waited for whom."""
