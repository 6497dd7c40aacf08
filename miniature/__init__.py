"""The embedded default of the study: two small trained encoders and ten synthetic tasks rendered on the spot.

Everything here uses only the public interface of ``aape``, as a user's own model and task would. The tasks are
synthetic versions of the paper's datasets: the same names and meanings, but rendered sounds.
"""
