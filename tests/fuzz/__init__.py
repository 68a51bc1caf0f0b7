"""Documents and files made by mutation, each judged by a second reader."""
