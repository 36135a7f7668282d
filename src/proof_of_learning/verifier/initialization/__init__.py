"""Whether recorded initial weights look drawn: laws and schemes (the pool), tests of a law, tests of independence."""
