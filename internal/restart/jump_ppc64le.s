#include "textflag.h"

// func jump(stack uintptr, p *plan, entry uintptr)
//
// What a callee is passed begins at 32(R1). R13, which says where a thread's own variables are, is 0
// when a program begins.
TEXT ·jump(SB), NOSPLIT|NOFRAME, $0-24
	MOVD	stack+0(FP), R4
	MOVD	p+8(FP), R5
	MOVD	entry+16(FP), R6
	ADD	$-64, R4
	MOVD	R4, R1
	MOVD	R5, 32(R1)
	MOVD	R6, 48(R1)
	CALL	·discard(SB)
	MOVD	48(R1), R6
	MOVD	R1, R4
	ADD	$64, R4
	MOVD	R4, R1
	MOVD	$0, R13
	MOVD	R6, CTR
	JMP	(CTR)
