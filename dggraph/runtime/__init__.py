"""The converted network: conversion, recording, archives."""
