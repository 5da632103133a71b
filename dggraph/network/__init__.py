"""The converted network: conversion, checks, executors, archives."""
