"""The embedded default of the study: two small trained encoders and ten stand-in tasks rendered on the spot.

Everything here uses only the public interface of ``aape``, as a user's own model and task would. The tasks are
*stand-ins* for the paper's datasets: same names and meanings, but rendered sounds.
"""
