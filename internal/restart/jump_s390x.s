#include "textflag.h"

// func jump(stack uintptr, p *plan, entry uintptr)
TEXT ·jump(SB), NOSPLIT|NOFRAME, $0-24
	MOVD	stack+0(FP), R1
	MOVD	p+8(FP), R2
	MOVD	entry+16(FP), R3
	SUB	$48, R1
	MOVD	R1, R15
	MOVD	R2, 8(R15)
	MOVD	R3, 24(R15)
	CALL	·discard(SB)
	MOVD	24(R15), R3
	MOVD	R15, R1
	ADD	$48, R1
	MOVD	R1, R15
	JMP	(R3)
