"""The report: what a run did and proved, as one page that needs nothing but a browser."""

from penjing.report.page import render as render
from penjing.report.page import write_report as write_report
