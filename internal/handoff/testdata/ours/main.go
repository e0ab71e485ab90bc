// Command ours is built on this library.
package main

import "github.com/facebookgo/grace/internal/handoff"

func main() { handoff.Self() }
