package blob

import "time"

// WithTimeout returns c with another timeout of a call.
func (c RingConfig) WithTimeout(timeout time.Duration) RingConfig {
	c.timeout = timeout
	return c
}
