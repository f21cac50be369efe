//go:build !unix

package bench

import "time"

// processorTime returns 0: what the process has used is not known here.
func processorTime() time.Duration { return 0 }
