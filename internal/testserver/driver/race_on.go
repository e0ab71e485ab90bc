//go:build unix && race

package driver

const raceEnabled = true
