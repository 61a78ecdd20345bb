"""The paper's questions, asked of finished runs: replayed steps, replaced tokens, arms over seeds, and the report.

These are programs of their own, which may use everything else; nothing else imports them.
"""
