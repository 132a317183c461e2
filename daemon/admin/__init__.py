"""The page for operators: what the satellites do, who waits, what became of connections; and who may see and do that.

HTML is made here, from the facts that `bentpipe top`, `why` and `report` show, by the same functions. No connection of a
client ever waits for a page, and whatever is wrong with a request ends that request alone. A decision about a satellite must
never be here, nor a secret in a page.
"""
