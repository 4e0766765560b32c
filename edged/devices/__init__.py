"""Devices that come and go: seen through udev, asked whether they can be used, and kept in one table of states."""
